"""Encoder-decoder models that answer in words, and what both kinds have in common."""

import copy

import pytest
import torch
from answer_cases import (
    ANIMALS,
    COLOURS,
    VOCABULARY,
    batch_of,
    make_llama,
    make_roberta,
    make_stream,
    make_t5,
    make_task,
    make_tokenizer,
)
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin

from avalanche_mgem import MGEM
from avalanche_mgem.evaluation import accuracy_matrix_metrics
from avalanche_mgem.huggingface import (
    TextToText,
    TokenLoss,
    causal_answers,
    label_words_of,
    text_to_text,
)
from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.streams.text import TextSample, TextTask

FORM = "text-to-text"


def make_model(words=None, **settings):
    words = words or label_words_of(make_stream(FORM))
    return text_to_text(make_t5(), make_tokenizer(), words, **settings)


def test_the_samples_are_the_question_and_the_answer():
    tokenizer = make_tokenizer()
    batch = batch_of(make_stream(FORM), size=8, experience=1)
    labels = batch[0]["labels"]
    right = labels.where(labels != -100, tokenizer.pad_token_id)
    words = tokenizer.batch_decode(right, skip_special_tokens=True)
    assert words == [ANIMALS[label] for label in batch["labels"].tolist()]
    assert set(labels[:, -1].tolist()) == {-100, tokenizer.eos_token_id}
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert all(text.endswith("Answer :") for text in texts)
    assert all(text.startswith("Which label fits the text ?") for text in texts)
    assert dict(batch)["labels"].shape == (8,)


@pytest.mark.parametrize("form", [FORM, "causal"])
@pytest.mark.parametrize("pair", [None, "small", "three"])
def test_what_is_too_long_is_cut_in_the_text(form, pair):
    samples = [TextSample("one two three four one two three", 0, pair), TextSample("one", 1, pair)]
    task = TextTask("colours", COLOURS, samples, samples)
    question = "Which label fits the text ? Options : red , green"
    size = len(question.split()) + len(["Answer", ":"])

    def sources(max_length):
        stream = make_stream(form, [task], max_length=max_length)
        features = batch_of(stream, size=2, part="train")[0]
        end = 0 if form == FORM else 2  # "causal" has the answer, and eos, at the end
        used = [ids[: int(mask.sum()) - end] for ids, mask in rows_of(features)]
        answers = [ids[ids != -100].tolist() for ids in features["labels"]]
        assert [len(answer) for answer in answers] == [2, 2]
        return make_tokenizer().batch_decode(used)

    second = "" if pair is None else f" {pair}"
    extra = size + len(second.split())
    whole, cut = (sources(n)[0] for n in (99, extra + 3))
    assert whole == f"{question} one two three four one two three{second} Answer :"
    assert cut == f"{question} one two three{second} Answer :"
    assert sources(extra + 3)[1] == f"{question} one{second} Answer :"
    with pytest.raises(ValueError, match=f"max_length={size} leaves no room for a text of task 'c"):
        sources(size)


def rows_of(features):
    return zip(features["input_ids"], features["attention_mask"], strict=True)


def test_of_a_pair_the_first_text_is_cut_while_that_is_enough():
    samples = [TextSample("one two", i, "three four three four three four") for i in range(2)]
    stream = make_stream(FORM, [TextTask("pairs", COLOURS, samples, samples)], max_length=17)
    text = make_tokenizer().decode(batch_of(stream, size=1)[0]["input_ids"][0])
    assert text.endswith("red , green one two three four Answer :")


def test_the_loss_is_that_of_transformers():
    model = make_model().train()
    features, labels, tasks = batch_of(make_stream(FORM), experience=1)
    output = model(features, tasks)
    wanted = model.model(**features).loss
    torch.testing.assert_close(TokenLoss()(output, labels), wanted, atol=1e-6, rtol=1e-6)
    assert output.logits.shape == (len(output.targets), len(VOCABULARY))
    assert int((features["labels"] != -100).sum()) == len(output.targets)


def test_the_answer_alone_makes_the_loss():
    model = make_model().train()
    features, labels, tasks = batch_of(make_stream(FORM), experience=1)
    output = model(features, tasks)
    shorter = torch.nn.functional.pad(features["labels"], (0, 3), value=-100)
    again = model(dict(features, labels=shorter), tasks)
    torch.testing.assert_close(TokenLoss()(again, labels), TokenLoss()(output, labels))


def test_generation_is_that_of_the_model_text_by_text():
    model = make_model().eval()
    features = batch_of(make_stream(FORM), size=8)[0]
    texts = model.generate(features)
    tokenizer = model.tokenizer
    for i, text in enumerate(texts):
        length = int(features["attention_mask"][i].sum())
        own = model.model.generate(
            features["input_ids"][i : i + 1, :length],
            do_sample=False,
            max_new_tokens=model.max_new_tokens,
        )
        assert tokenizer.decode(own[0], skip_special_tokens=True) == text
        assert model.generate({k: v[i : i + 1] for k, v in features.items()}) == [text]


def test_scores_are_of_the_class_that_is_named(monkeypatch):
    model = make_model({0: {0: "red", 1: "green"}, 1: {0: "cat", 1: "big dog"}}).eval()
    assert model.max_new_tokens == 4
    answers = [" Red", "green", "cat", "big  DOG", "dog"]
    monkeypatch.setattr(model, "generate", lambda _: answers)
    features = batch_of(make_stream(FORM))[0]
    with torch.no_grad():
        scores = model(features, torch.tensor([0, 0, 0, 1, 1]))
    assert scores.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert float(TokenLoss()(scores, torch.tensor([0, 1, 0, 1, 1]))) == pytest.approx(0.4)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="no words for the task label 2"),
    ):
        model(features, 2)
    with torch.no_grad(), pytest.raises(ValueError, match="task labels are needed"):
        model(features)
    with pytest.raises(ValueError, match="class 2, but label_words has words for 2 classes"):
        TokenLoss()(scores, torch.tensor([0, 1, 0, 1, 2]))


def test_while_training_scores_say_which_answers_are_right_token_by_token():
    model = make_model()
    features, labels, tasks = batch_of(make_stream(FORM), size=8, experience=1)
    wanted = features["labels"] != -100
    logits = torch.zeros(int(wanted.sum()), len(VOCABULARY))
    logits[torch.arange(len(logits)), features["labels"][wanted]] = 1
    model._logits = lambda features, wanted: logits
    scores = torch.as_tensor(model(features, tasks))
    assert scores.argmax(1).tolist() == labels.tolist()
    assert not bool(scores[:, -1].any())
    logits[0] = 0
    scores = torch.as_tensor(model(features, tasks))
    assert scores[:, -1].tolist() == [1, *[0] * 7]
    assert type(scores.argmax(1)) is torch.Tensor


PLUGINS = {
    "Naive": {},
    "Replay": {"mem_size": 16},
    "EWC": {"ewc_lambda": 0.1},
    "AGEM": {"patterns_per_exp": 8, "sample_size": 8},
}


@pytest.mark.parametrize(
    "name", ["Naive", "Replay", *(pytest.param(n, marks=pytest.mark.slow) for n in ("EWC", "AGEM"))]
)
def test_avalanches_strategies_learn_to_answer(name, capsys):
    stream = make_stream(FORM)
    model = make_model()
    strategy = getattr(supervised, name)(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=TokenLoss(),
        train_mb_size=8,
        eval_mb_size=8,
        train_epochs=50,
        evaluator=EvaluationPlugin(
            accuracy_metrics(epoch=True, experience=True),
            loss_metrics(epoch=True, experience=True),
            accuracy_matrix_metrics(),
        ),
        **PLUGINS[name],
    )
    results = {}
    for experience in stream.train_stream if name != "Naive" else [stream.train_stream[1]]:
        strategy.train(experience)
        results = strategy.eval(stream.test_stream)
    last = {key: value for key, value in results.items() if "Exp001" in key}
    assert [v for k, v in last.items() if k.startswith("Top1_Acc_Exp/eval")] == [1.0]
    assert [v for k, v in last.items() if k.startswith("Loss_Exp/eval")] == [0.0]
    trained = [v for k, v in results.items() if k.startswith("Top1_Acc_Epoch/train")]
    assert trained[-1] == 1.0


def test_our_strategy_takes_answers():
    stream = make_stream(FORM)
    model = make_model()
    strategy = MGEM(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=TokenLoss(),
        patterns_per_experience=8,
        train_mb_size=8,
        evaluator=EvaluationPlugin(),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    assert strategy.plugins[0].last_projection is not None


def test_the_tied_output_layer_is_a_head():
    names = [layer.name for layer in find_gated_layers(make_model())]
    assert not any("lm_head" in name for name in names)
    assert sum("SelfAttention" in name for name in names) == 8
    assert len(names) == 16
    only = find_gated_layers(make_model(), r"decoder\..*\.wo")
    assert [layer.name for layer in only] == ["model.decoder.block.0.layer.2.DenseReluDense.wo"]


def test_a_model_is_loaded_by_its_folder(tmp_path):
    make_t5(seed=3).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = text_to_text(tmp_path, None, {0: "red", 1: "green"})
    for own, saved in zip(model.parameters(), make_t5(seed=3).parameters(), strict=True):
        assert torch.equal(own, saved)
    assert type(copy.deepcopy(model)) is TextToText


def test_label_words_are_those_of_the_stream():
    assert label_words_of(make_stream(FORM)) == {
        0: dict(enumerate(COLOURS)),
        1: dict(enumerate(ANIMALS)),
    }
    joint = label_words_of(make_stream(FORM, task_labels=False))
    assert joint == dict(enumerate(COLOURS + ANIMALS))
    one = make_stream(FORM, [make_task()])
    assert label_words_of(one) == dict(enumerate(COLOURS))
    with pytest.raises(ValueError, match="must be made by text_stream"):
        label_words_of(type("Other", (), {"streams": {"train": [object()]}}))


def test_what_does_not_fit_is_refused():
    words, t5, tokenizer = {0: "red", 1: "green"}, make_t5(), make_tokenizer()
    with pytest.raises(ValueError, match=r"no padding token: set one, such as tokenizer.pad_token"):
        text_to_text(t5, make_tokenizer(pad_token=None), words)
    with pytest.raises(ValueError, match=r"embeddings for 9 only: .*resize_token_embeddings"):
        text_to_text(make_t5(9), tokenizer, words)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not for TextToText but for Causal"):
        text_to_text(make_llama(), tokenizer, words)
    with pytest.raises(ValueError, match=r"T5.* is not for CausalAnswers but for TextToText"):
        causal_answers(t5, tokenizer, words)
    with pytest.raises(ValueError, match="must be one of transformers that generates text"):
        text_to_text(make_roberta().roberta.embeddings, tokenizer, words)
    with pytest.raises(ValueError, match="classes 0 and 2 have the same answer 'red'"):
        text_to_text(t5, tokenizer, {0: "red", 1: "green", 2: "red"})
    with pytest.raises(ValueError, match="knows no token of the label word 'mauve'"):
        text_to_text(t5, tokenizer, {0: "red", 1: "mauve"})
    with pytest.raises(ValueError, match="label_words must be"):
        text_to_text(t5, tokenizer, {})
    with pytest.raises(ValueError, match=r"features have no 'labels': text_stream"):
        make_model()({"input_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}, 0)
    with pytest.raises(ValueError, match="padding_side must be 'right' or None"):
        make_stream(FORM, padding_side="left")
    with pytest.raises(ValueError, match="form: unknown 'seq2seq'"):
        make_stream("seq2seq")
    with pytest.raises(ValueError, match=r"classes take torch.nn.CrossEntropyLoss"):
        TokenLoss()(torch.zeros(2, 2, requires_grad=True), torch.zeros(2).long())
