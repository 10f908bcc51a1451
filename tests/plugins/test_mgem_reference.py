"""The gradients that the plugin leaves, against a slow reference that shares no code with it."""

import copy
from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from avalanche.models import avalanche_forward
from reference import cone as reference
from tiny import SETTINGS, Call, make_model, make_strategy, snapshot, train
from torch import nn

from avalanche_mgem import MGEMPlugin

PATTERNS = {"first": ["0"], "last": ["2.*"]}


def modules_of(model, groups):
    """Positions of each module in the long vector, from the definition of the partition."""
    owner = []
    for name, p in model.named_parameters():
        owner += [name] * p.numel()
    if isinstance(groups, int):
        edges = [len(owner) * i // groups for i in range(groups + 1)]
        return [list(range(edges[i], edges[i + 1])) for i in range(groups)]
    if groups == "tensor":
        keys = [[n] for n in dict.fromkeys(owner)]
    elif groups == "layer":
        layers = dict.fromkeys(n.rsplit(".", 1)[0] for n in owner)
        keys = [[f"{layer}.*"] for layer in layers]
    else:
        keys = [[p if "*" in p else f"{p}.*" for p in patterns] for patterns in groups.values()]
    return [
        [i for i, n in enumerate(owner) if any(fnmatchcase(n, p) for p in patterns)]
        for patterns in keys
    ]


def loss_on(model, batch):
    """The mean loss on a batch [x, y, task labels]."""
    x, y, task_labels = batch
    return nn.functional.cross_entropy(avalanche_forward(model, x, task_labels), y)


def flat_gradient(model, batch):
    """The gradient of the mean loss on a batch; zeros where there is none."""
    model = snapshot(model)
    model.zero_grad()
    loss_on(model, batch).backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts]).numpy()


class Recorder:
    """Plugins before and after ours that keep what it saw and what it left."""

    def __init__(self, plugin):
        self.steps = []
        self.plugins = [
            Call(before_training_iteration=self.see_model, after_backward=self.see_gradient),
            plugin,
            Call(after_backward=self.see_result),
        ]
        self.plugin = plugin

    def see_model(self, strategy):
        self.model = snapshot(strategy.model)

    def see_gradient(self, strategy):
        self.gradient = self._vector(strategy.model)

    def see_result(self, strategy):
        groups = copy.deepcopy(self.plugin.memory.closed_groups())
        self.steps.append((self.model, self.gradient, self._vector(strategy.model), groups))

    def _vector(self, model):
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return torch.cat([part.flatten() for part in parts]).numpy().copy()


def polyak(model, groups, rows, shares):
    """gamma = F / (lr ||s||^2), by hand; the learning rate is that of `make_strategy`."""
    loss = sum(s * loss_on(model, g.batch).item() for s, g in zip(shares, groups, strict=True))
    push = shares @ rows.astype(np.float64)
    return loss / (0.3 * push @ push)


@pytest.mark.cover
@pytest.mark.parametrize("gamma", [0.0, 0.5, "auto"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"parameter_groups": 2},
        {"parameter_groups": 5},
        {"parameter_groups": "layer"},
        {"parameter_groups": "tensor"},
        {"parameter_groups": PATTERNS},
        {"memory_groups": 3},
        {"memory_groups": 3, "memory_split": "class"},
        {"memory_groups": 2, "memory_strength_per": "row"},
        {"parameter_groups": 3, "memory_groups": 2, "memory_selection": "class-balanced"},
        {"parameter_groups": "layer", "memory_groups": 3},
    ],
    ids=str,
)
def test_every_projected_gradient_is_the_references(arguments, gamma):
    plugin = MGEMPlugin(12, gamma, seed=0, **arguments)
    recorder = Recorder(plugin)
    strategy = make_strategy(make_model(), recorder.plugins, train_epochs=4)
    train(strategy, SETTINGS["single head"][1]().train_stream)
    per_row = arguments.get("memory_strength_per") == "row"
    moved = 0
    for model, gradient, result, groups in recorder.steps:
        if not groups:
            assert np.array_equal(gradient, result)
            continue
        rows = np.stack([flat_gradient(model, group.batch) for group in groups])
        shares = np.array([1.0 if per_row else group.size / 12 for group in groups])
        modules = modules_of(model, arguments.get("parameter_groups", 1))
        lower = shares * (polyak(model, groups, rows, shares) if gamma == "auto" else gamma)
        expected = reference.project(gradient, rows, modules, lower, "relative")
        size = max(np.linalg.norm(gradient), np.linalg.norm(expected))
        assert np.linalg.norm(result - expected) <= 1e-6 * size
        moved += not np.array_equal(gradient, result)
    assert moved > 5  # the test saw projections, not only unharmed gradients


def test_the_approximate_solver_is_its_formula():
    plugin = MGEMPlugin(12, 0.2, solver="approximate", memory_groups=3, seed=0)
    recorder = Recorder(plugin)
    strategy = make_strategy(make_model(), recorder.plugins, train_epochs=4)
    train(strategy, SETTINGS["single head"][1]().train_stream)
    moved = 0
    for model, gradient, result, groups in recorder.steps:
        expected = gradient.astype(np.float64)
        rows = [flat_gradient(model, g.batch).astype(np.float64) for g in groups]
        if any(row @ gradient < 0 for row in rows):
            moved += 1
            for row in rows:
                expected = expected + max(0.2 / 3, -(row @ gradient) / (row @ row)) * row
        assert np.linalg.norm(result - expected) <= 1e-6 * np.linalg.norm(gradient)
    assert moved > 5
