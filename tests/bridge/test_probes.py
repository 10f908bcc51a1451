"""Probes measure a gradient and leave no trace."""

import random

import numpy as np
import pytest
import torch
from text_cases import TextModel, WordTokenizer, make_task
from tiny import SETTINGS, Heads, class_stream, domain_stream, make_model, make_strategy, train
from torch import nn
from torch.optim import AdamW

from avalanche_mgem.bridge.probes import GradientProbe
from avalanche_mgem.streams.text import text_stream


class Moving(nn.Module):
    """A layer with a buffer of each kind that a forward pass moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x):
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x + torch.randn_like(x) * 0.01 + random.random() * 0.01 + np.random.rand() * 0.01


def state(strategy):
    """Everything that a run depends on."""
    model, optimizer = strategy.model, strategy.optimizer
    tensors = {f"parameter {n}": p.detach().clone() for n, p in model.named_parameters()}
    tensors |= {f"buffer {n}": b.clone() for n, b in model.named_buffers()}
    tensors |= {
        f"grad {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"state {index} {k}": torch.as_tensor(v).clone() for k, v in values.items()}
    tensors["torch"] = torch.get_rng_state()
    others = {
        "modes": [m.training for m in model.modules()],
        "needs": [p.requires_grad for p in model.parameters()],
        "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "grads": [id(p.grad) if p.grad is not None else None for p in model.parameters()],
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "batch": (strategy.mbatch, strategy.mb_output),
        "optimizer": str(optimizer.state_dict()["param_groups"]),
    }
    return tensors, others


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    assert before[1] == after[1]


def moving():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), Moving(), nn.Dropout(0.3), nn.Linear(8, 6)
    )


CASES = {name: (lambda s=name: make_model(s), SETTINGS[name][1]) for name in SETTINGS}
CASES["moving buffers"] = (moving, domain_stream)


def prepared(case):
    model, stream = CASES[case][0](), CASES[case][1]().train_stream
    strategy = make_strategy(model, optimizer=lambda m: AdamW(m.parameters(), lr=0.01))
    train(strategy, stream[:2])
    strategy.is_training, strategy.experience = True, stream[1]
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return strategy, stream[1].dataset, names


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_probe_leaves_no_trace(case, mode):
    strategy, dataset, names = prepared(case)
    strategy.model.train(mode)
    before = state(strategy)
    gradient = GradientProbe(2, seed=0).gradient(strategy, dataset, names)
    assert_same(before, state(strategy))
    named = dict(strategy.model.named_parameters())
    assert {n: g.shape for n, g in gradient.items()} == {n: named[n].shape for n in names}
    assert any(g.abs().sum() > 0 for g in gradient.values())
    assert len(before[0]) > len(names)


@pytest.mark.parametrize(("batches", "size"), [(100, 8), (1, 24), (1, 1000), (3, 8)])
def test_all_the_data_is_the_gradient_of_the_whole_loss(batches, size):
    strategy, dataset, names = prepared("single head")
    strategy.train_mb_size = size
    gradient = GradientProbe(batches, seed=0).gradient(strategy, dataset, names)
    x, y = (torch.stack([torch.as_tensor(s[i]) for s in dataset]) for i in (0, 1))
    model = strategy.model
    expected = torch.autograd.grad(nn.CrossEntropyLoss()(model(x), y), list(model.parameters()))
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(gradient[name], value)


def test_what_remains_of_the_data_is_left_out():
    strategy, dataset, names = prepared("batch norm")
    strategy.train_mb_size = 23  # the rest would be one sample, which batch norm refuses
    assert GradientProbe(8, seed=0).gradient(strategy, dataset, names)


def test_samples_come_from_the_seed():
    strategy, dataset, names = prepared("dropout")
    probes = [GradientProbe(1, seed=s) for s in (1, 1, 2)]
    one, same, other = (p.gradient(strategy, dataset, names) for p in probes)
    again = probes[0].gradient(strategy, dataset, names)
    assert torch.equal(one["0.weight"], same["0.weight"])
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert not torch.equal(one["0.weight"], again["0.weight"])


def test_batches_of_text_are_collated_as_the_data_set_says():
    tasks = [make_task(), make_task("again")]
    stream = text_stream(tasks, tokenizer=WordTokenizer()).train_stream
    strategy = make_strategy(TextModel())
    strategy.train(stream[0])
    strategy.experience = stream[1]
    before = state(strategy)
    names = [n for n, _ in strategy.model.named_parameters()]
    gradient = GradientProbe(2, seed=0).gradient(strategy, stream[1].dataset, names)
    assert_same(before, state(strategy))
    assert gradient["head.weight"].abs().sum() > 0


def test_heads_that_are_not_used_have_a_gradient_of_zero():
    strategy = make_strategy(Heads())
    stream = class_stream(task_labels=True).train_stream
    train(strategy, stream[:2])
    strategy.experience = stream[1]
    names = [n for n, _ in strategy.model.named_parameters()]
    gradient = GradientProbe(2, seed=0).gradient(strategy, stream[1].dataset, names)
    assert gradient["classifier.classifiers.0.classifier.weight"].abs().sum() == 0
    assert gradient["classifier.classifiers.1.classifier.weight"].abs().sum() > 0


def test_a_bad_number_is_named():
    with pytest.raises(ValueError, match="probe_batches must be a whole number >= 1, got 0"):
        GradientProbe(0, seed=0)
