"""Masked-language models, for continual pre-training."""

import copy

import pytest
import torch
from answer_cases import SPECIAL, VOCABULARY, make_roberta, make_tokenizer
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin

from avalanche_mgem.huggingface import (
    MaskedLanguageModel,
    TokenLoss,
    masked_language_model,
    text_classifier,
)
from avalanche_mgem.streams.text import plain_text_stream

MASK = SPECIAL.index("<mask>")


def make_model(share=0.15, **settings):
    return MaskedLanguageModel(make_roberta(), make_tokenizer(), share, **settings)


def features_of(rows=64, length=30):
    ids = torch.randint(len(VOCABULARY), (rows, length))
    mask = torch.ones_like(ids)
    mask[:, length - 5 :] = 0  # what is not attended to is padding, whatever its id
    return {"input_ids": ids, "attention_mask": mask}


def seen_by(model):
    """The ids that the model of transformers gets."""
    seen = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    return seen


def test_the_shares_are_berts_and_special_tokens_stay():
    model = make_model().train()
    seen = seen_by(model)
    features = features_of(rows=4000)
    with torch.no_grad():
        output = model(features)
    ids = features["input_ids"]
    free = (ids >= len(SPECIAL)) & (features["attention_mask"] == 1)
    assert len(output.targets) / int(free.sum()) == pytest.approx(0.15, abs=0.005)
    assert bool((output.targets >= len(SPECIAL)).all())
    changed = seen[0] != ids
    assert not bool((changed & ~free).any())
    masked = seen[0][changed] == MASK
    assert int(masked.sum()) / len(output.targets) == pytest.approx(0.8, abs=0.02)
    # A random token is the old one by chance, once in as many as there are.
    chance = 1 - 1 / (len(VOCABULARY) - len(SPECIAL))
    others = seen[0][changed][~masked]
    assert len(others) / len(output.targets) == pytest.approx(0.1 * chance, abs=0.01)
    assert others.unique().tolist() == list(range(len(SPECIAL), len(VOCABULARY)))


def test_the_loss_is_that_of_transformers():
    model = make_model(share=1.0).eval()
    seen = seen_by(model)
    features = features_of()
    output = model(features)
    chosen = (features["input_ids"] >= len(SPECIAL)) & (features["attention_mask"] == 1)
    labels = features["input_ids"].where(chosen, -100)
    wanted = model.model(
        input_ids=seen[0], attention_mask=features["attention_mask"], labels=labels
    ).loss
    loss = TokenLoss()(output, torch.zeros(64))
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-6)
    assert output.shape == (64, 2)
    torch.testing.assert_close(output.sum(1), torch.ones(64))


def test_evaluation_repeats_itself_and_leaves_the_random_state_alone():
    model, features = make_model().eval(), features_of()
    before = torch.get_rng_state()
    first, second = model(features), model(features)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.targets, second.targets)
    other = make_model(seed=1).eval()(features)
    assert not torch.equal(first.targets, other.targets)


def test_training_draws_anew_from_the_global_state():
    model, features = make_model().train(), features_of()
    torch.manual_seed(1)
    first, second = model(features).targets, model(features).targets
    torch.manual_seed(1)
    assert torch.equal(model(features).targets, first)
    assert not torch.equal(first, second)


def test_without_a_chosen_token_the_loss_is_zero():
    model = make_model(share=1e-9).train()
    loss = TokenLoss()(model(features_of()), torch.zeros(64))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


def domains():
    return {
        "colours": (["red green blue"] * 12, ["red green blue", "green blue"] * 2),
        "animals": (["cat dog cow"] * 12, ["cat dog cow"] * 4),
    }


@pytest.mark.parametrize("name", ["Naive", "Replay", "EWC"])
def test_pre_training_on_domains_and_a_copy_for_a_task(name):
    stream = plain_text_stream(domains(), tokenizer=make_tokenizer())
    model = make_model(share=0.5)
    settings = {"Naive": {}, "Replay": {"mem_size": 8}, "EWC": {"ewc_lambda": 0.1}}
    strategy = getattr(supervised, name)(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=TokenLoss(),
        train_mb_size=6,
        eval_mb_size=4,
        train_epochs=10,
        evaluator=EvaluationPlugin(loss_metrics(experience=True)),
        **settings[name],
    )
    before = list(strategy.eval(stream.test_stream).values())
    for experience in stream.train_stream:
        strategy.train(experience)
    after = list(strategy.eval(stream.test_stream).values())
    assert after == list(strategy.eval(stream.test_stream).values())
    assert after[-1] < before[-1] - 0.5
    pretrained = copy.deepcopy(model.encoder)
    classifier = text_classifier(pretrained, heads="single", n_classes=2)
    batch = stream.test_stream[0].dataset[0][0]
    assert classifier({k: v[None] for k, v in batch.items()}).shape == (1, 2)
    assert classifier.encoder is not model.encoder


def test_a_model_is_loaded_by_its_folder(tmp_path):
    make_roberta(seed=3).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = masked_language_model(tmp_path)
    for own, saved in zip(model.parameters(), make_roberta(seed=3).parameters(), strict=True):
        assert torch.equal(own, saved)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tokenizer has no mask token"):
        masked_language_model(make_roberta(), make_tokenizer(mask_token=None))
    with pytest.raises(ValueError, match="no padding token"):
        masked_language_model(make_roberta(), make_tokenizer(pad_token=None))
    with pytest.raises(ValueError, match=r"mask_share must be in \(0, 1\], got 1.5"):
        make_model(share=1.5)
    with pytest.raises(ValueError, match="mask_share must be a finite number > 0, got 0"):
        make_model(share=0)
    with pytest.raises(ValueError, match="tokenizer=None needs a model by its name"):
        masked_language_model(make_roberta())
