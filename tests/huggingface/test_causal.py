"""Causal models that answer in words."""

import pytest
import torch
from answer_cases import (
    VOCABULARY,
    batch_of,
    make_llama,
    make_stream,
    make_task,
    make_tokenizer,
)
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from avalanche_mgem.huggingface import CausalAnswers, TokenLoss, causal_answers, label_words_of
from avalanche_mgem.huggingface.answers import AnswerScores
from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.streams.text import text_stream
from avalanche_mgem.streams.text.answers import answer_tokens

FORM = "causal"


def make_model(words=None):
    words = words or label_words_of(make_stream(FORM))
    return causal_answers(make_llama(), make_tokenizer(), words)


def sources_of(features):
    """The questions alone, unpadded."""
    wanted = (features["attention_mask"] == 1) & (features["labels"] == -100)
    return [ids[own] for ids, own in zip(features["input_ids"], wanted, strict=True)]


def test_the_answer_comes_after_the_question():
    tokenizer = make_tokenizer()
    features, labels, _ = batch_of(make_stream(FORM), size=8)
    used = features["labels"] != -100
    assert torch.equal(features["labels"][used], features["input_ids"][used])
    answers = [ids[ids != -100] for ids in features["labels"]]
    texts = tokenizer.batch_decode(answers)
    assert texts == [("red </s>", "green </s>")[label] for label in labels.tolist()]
    assert all(text.endswith("Answer :") for text in tokenizer.batch_decode(sources_of(features)))
    assert bool((features["labels"][features["attention_mask"] == 0] == -100).all())


def test_a_tokenizer_that_ends_texts_with_eos_does_not_end_the_question():
    tokenizer = make_tokenizer()

    def ending(texts, max_length):
        made = tokenizer(texts)["input_ids"]
        return {"input_ids": [[4, *ids, 1][:max_length] for ids in made]}

    ending.eos_token_id = 1
    for room in (99, 16):  # for all of the text, and for a part
        plain, ended = (
            text_stream([make_task()], tokenizer=each, form=FORM, max_length=length)
            for each, length in ((tokenizer, room), (ending, room + 1))
        )
        for one, other in zip(
            plain.test_stream[0].dataset, ended.test_stream[0].dataset, strict=True
        ):
            assert other[0]["input_ids"].tolist() == [4, *one[0]["input_ids"].tolist()]


def test_an_answer_has_the_tokens_that_it_has_after_the_cue():
    spaced = Tokenizer(models.BPE())  # its words have the space before them
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spaced.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    spaced.train_from_iterator(["Answer: very negative Answer: positive"] * 9, trainer)
    spaced.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spaced, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    for word in ("positive", "very negative"):
        source = tokenizer("Answer:")["input_ids"]
        both = [*tokenizer(f"Answer: {word}")["input_ids"], tokenizer.eos_token_id]
        assert answer_tokens(word, tokenizer, form=FORM) == both[len(source) :]
    scores = AnswerScores(tokenizer, {0: "positive", 1: "very negative"}, form=FORM)
    assert scores.of_texts([" very negative", " "], None).tolist() == [[0, 1, 0], [0, 0, 1]]


def test_the_loss_is_that_of_transformers():
    model = make_model().train()
    features, labels, tasks = batch_of(make_stream(FORM), experience=1)
    output = model(features, tasks)
    wanted = model.model(**features).loss
    torch.testing.assert_close(TokenLoss()(output, labels), wanted, atol=1e-6, rtol=1e-6)
    assert output.logits.shape == (len(output.targets), len(VOCABULARY))


def test_the_first_token_is_no_answer():
    model = make_model().train()
    features, _, tasks = batch_of(make_stream(FORM))
    with pytest.raises(ValueError, match=r"features\['labels'\] must be -100 on the first token"):
        model({**features, "labels": features["input_ids"]}, tasks)


def test_models_that_give_all_logits_have_the_same_loss():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=1, n_head=2)
    gpt2 = GPT2LMHeadModel(config)
    model = CausalAnswers(gpt2, make_tokenizer(), {0: "red", 1: "green"}).eval()
    features, labels, tasks = batch_of(make_stream(FORM))
    losses = [TokenLoss()(model(features, tasks), labels)]
    gpt2.forward = lambda input_ids, attention_mask, use_cache: type(gpt2).forward(
        gpt2, input_ids=input_ids, attention_mask=attention_mask
    )
    losses.append(TokenLoss()(model(features, tasks), labels))
    torch.testing.assert_close(losses[0], losses[1])


def test_the_answer_alone_makes_the_loss():
    model = make_model().train()
    features, labels, tasks = batch_of(make_stream(FORM), experience=1)
    output = model(features, tasks)
    answer = features["labels"] != -100
    assert torch.equal(output.targets, features["input_ids"][answer])
    # What stands in padding, and more of it, changes nothing.
    padded = {
        "input_ids": features["input_ids"].where(features["attention_mask"] == 1, 7),
        "attention_mask": features["attention_mask"],
        "labels": features["labels"],
    }
    padded = {
        name: torch.nn.functional.pad(value, (0, 2), value=-100 if name == "labels" else 0)
        for name, value in padded.items()
    }
    torch.testing.assert_close(
        TokenLoss()(model(padded, tasks), labels), TokenLoss()(output, labels)
    )


def test_generation_is_that_of_the_model_text_by_text():
    model = make_model().eval()
    features = batch_of(make_stream(FORM), size=8)[0]
    texts = model.generate(features)
    assert len(set(texts)) > 1
    for i, source in enumerate(sources_of(features)):
        own = model.model.generate(
            source[None],
            attention_mask=torch.ones_like(source[None]),
            do_sample=False,
            max_new_tokens=model.max_new_tokens,
            eos_token_id=1,
            pad_token_id=0,
        )
        answer = model.tokenizer.decode(own[0, len(source) :], skip_special_tokens=True)
        assert answer == texts[i]
        assert model.generate({k: v[i : i + 1] for k, v in features.items()}) == [answer]
    whole = {"input_ids": source[None], "attention_mask": torch.ones_like(source[None])}
    assert model.generate(whole) == [texts[-1]]


def test_the_output_layer_is_a_head():
    names = [layer.name for layer in find_gated_layers(make_model())]
    assert len(names) == 14
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize(
    "name", ["Replay", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Naive", "EWC"))]
)
def test_avalanches_strategies_learn_to_answer(name):
    stream = make_stream(FORM, task_labels=False)
    model = make_model(label_words_of(stream))
    settings = {"Naive": {}, "Replay": {"mem_size": 24}, "EWC": {"ewc_lambda": 0.1}}
    strategy = getattr(supervised, name)(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=TokenLoss(),
        train_mb_size=8,
        eval_mb_size=8,
        train_epochs=20,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True)),
        **settings[name],
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    first, last = strategy.eval(stream.test_stream).values()
    assert last == 1.0
    assert first == 1.0 or name != "Replay"
