"""mGEM in all the company it may be in, and what it must leave alone."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from tiny import (
    N_CLASSES,
    N_FEATURES,
    SETTINGS,
    Call,
    class_stream,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.restriction import LinearSchedule, QuadprogSolver

VARIANTS = {
    "gem": {},
    "p": {"parameter_groups": 3},
    "layers": {"parameter_groups": "layer", "restrict": "update"},
    "d": {"memory_groups": 3, "memory_selection": "class-balanced"},
    "d by class": {"memory_groups": 2, "memory_split": "class", "memory_batchnorm": "restore"},
    "ring": {"memory_groups": 2, "memory_selection": "ring"},
    "approximate": {"parameter_groups": "tensor", "solver": "approximate"},
}
PEERS = {
    "alone": list,
    "replay": lambda: [ReplayPlugin(12)],
    "ewc": lambda: [EWCPlugin(1.0)],
    "lwf": lambda: [LwFPlugin()],
}


def plugin_of(variant, **arguments):
    return MGEMPlugin(12, 0.1, seed=0, **VARIANTS[variant], **arguments)


@pytest.mark.cover
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_every_model_beside_a_peer(variant, setting):
    """Each model meets each variant; peers and optimisers take turns, so each meets each model."""
    turn = list(VARIANTS).index(variant) + list(SETTINGS).index(setting)
    peer = list(PEERS)[turn % len(PEERS)]
    optimizer = [
        lambda m: SGD(m.parameters(), lr=0.2, momentum=0.9),
        lambda m: Adam(m.parameters(), lr=0.01, weight_decay=0.01),
    ][turn % 2]
    plugin = plugin_of(variant)
    model = make_model(setting)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    plugins = [*PEERS[peer](), plugin]
    strategy = make_strategy(model, plugins, optimizer=optimizer, train_epochs=2)
    stream = SETTINGS[setting][1]()
    train(strategy, stream.train_stream)
    strategy.eval(stream.test_stream)
    model = strategy.model
    assert len(plugin.memory) == 3
    assert all(p.isfinite().all() for p in model.parameters())
    for name, value in frozen.items():
        assert torch.equal(dict(model.named_parameters())[name], value)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
    copy.deepcopy(plugin)
    pickle.loads(pickle.dumps(plugin))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_global_random_state_is_that_of_naive(setting):
    states = []
    for plugins in ([], [plugin_of("d")], [plugin_of("ring")]):
        strategy = make_strategy(make_model(setting), plugins, train_epochs=2)
        train(strategy, SETTINGS[setting][1]().train_stream)
        states.append((torch.get_rng_state(), np.random.get_state()[1]))
    for torch_state, numpy_state in states[1:]:
        assert torch.equal(torch_state, states[0][0])
        assert np.array_equal(numpy_state, states[0][1])


class DropoutInTheCall(nn.Module):
    """Drops out without a module that says so."""

    def forward(self, x):
        return functional.dropout(x, 0.3, self.training)


@pytest.mark.parametrize("memory_passes", ["auto", "loop"])
def test_a_pickle_goes_on_where_nobody_sees_the_dropout(memory_passes):
    stream = SETTINGS["dropout"][1]().train_stream
    ends = []
    for through in (lambda s: s, lambda s: pickle.loads(pickle.dumps(s))):
        torch.manual_seed(0)
        layers = [nn.Linear(N_FEATURES, 8), DropoutInTheCall(), nn.ReLU(), nn.Linear(8, N_CLASSES)]
        plugin = MGEMPlugin(12, memory_groups=3, memory_passes=memory_passes, seed=0)
        first = make_strategy(nn.Sequential(*layers), [plugin])
        train(first, stream[:2])
        model, plugin = through((first.model, plugin))
        torch.manual_seed(1)
        ends.append(train(make_strategy(model, [plugin]), stream, first=2).model)
    assert torch.equal(*map(parameter_vector, ends))


@pytest.mark.cover
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("setting", ["dropout", "batch norm", "a head a task"])
def test_a_copy_and_a_pickle_go_on_as_the_original(setting, variant):
    stream = SETTINGS[setting][1]().train_stream
    results = []
    for through in (lambda s: s, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
        model = make_model(setting)
        first = make_strategy(model, [plugin_of(variant)], train_epochs=2)
        train(first, stream[:2])
        state = through((first.model, first.plugins[0]))
        second = make_strategy(state[0], [state[1]], train_epochs=2)
        train(second, stream, first=2)
        results.append(parameter_vector(second.model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("setting", ["a head a task", "frozen part"])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_unused_heads_stay_to_the_bit_and_without_gradient(setting, restrict):
    """Momentum and weight decay must not see a gradient where there was none."""
    plugin = MGEMPlugin(12, 0.5, restrict=restrict, seed=0)
    before, checked = {}, []

    def remember(strategy):
        before.clear()
        before.update({n: p.detach().clone() for n, p in strategy.model.named_parameters()})

    def compare(strategy):
        for name, parameter in strategy.model.named_parameters():
            if parameter.grad is None:
                assert torch.equal(parameter, before[name])
                checked.append(name)

    watcher = Call(before_training_iteration=remember, after_training_iteration=compare)
    strategy = make_strategy(
        make_model(setting),
        [plugin, watcher],
        optimizer=lambda m: SGD(m.parameters(), lr=0.2, momentum=0.9, weight_decay=0.1),
        train_epochs=4,
    )
    train(strategy, SETTINGS[setting][1]().train_stream)
    assert checked


def test_memory_batchnorm_restore_leaves_the_statistics_alone():
    """Statistics after an iteration are those that its own minibatch makes."""
    for mode, same in (("restore", True), ("evaluate", True), ("update", False)):
        plugin = MGEMPlugin(12, 0.5, memory_batchnorm=mode, seed=0)
        before, equal = {}, []
        first = Call(
            before_training_iteration=lambda s, b=before: b.update(
                mean=s.model[1].running_mean.clone()
            )
        )
        last = Call(
            before_training_iteration=lambda s, b=before, e=equal: e.append(
                torch.equal(b["mean"], s.model[1].running_mean)
            )
        )
        strategy = make_strategy(make_model("batch norm"), [first, plugin, last])
        train(strategy, domain_stream().train_stream)
        assert all(equal[3:]) is same


def test_memory_batchnorm_evaluate_gives_the_gradients_of_the_evaluated_network():
    seen = []

    def look(strategy):
        groups = plugin.memory.closed_groups()
        if not groups:
            return
        assert all(module.training for module in strategy.model.modules())
        model = copy.deepcopy(strategy.model)
        model.zero_grad()
        model[1].eval()
        nn.functional.cross_entropy(model(groups[0].batch[0]), groups[0].batch[1]).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(plugin._matrix.rows[0], expected)
        seen.append(expected)

    # A group of one sample, which batch normalisation refuses in training mode.
    plugin = MGEMPlugin(3, memory_groups=3, memory_batchnorm="evaluate", seed=0)
    strategy = make_strategy(
        make_model("batch norm"), [plugin, Call(before_forward=look)], train_epochs=2
    )
    train(strategy, domain_stream().train_stream)
    assert len(seen) > 5


class RecordingSolver(QuadprogSolver):
    """Keeps the bounds that it was given; no exact solver, so it is given all of them."""

    exact = False

    def __init__(self):
        self.bounds = []

    def __call__(self, gram, dots, lower):
        self.bounds.append(lower)
        return super().__call__(gram, dots, lower)


@pytest.mark.parametrize(("per", "expected"), [("task", 0.6 / 3), ("row", 0.6)])
def test_the_bound_of_a_row(per, expected):
    solver = RecordingSolver()
    plugin = MGEMPlugin(12, 0.6, solver=solver, memory_groups=3, memory_strength_per=per, seed=0)
    train(make_strategy(make_model(), [plugin], train_epochs=4), domain_stream().train_stream)
    assert solver.bounds
    assert {len(bound) for bound in solver.bounds} <= {3, 6}
    for bound in solver.bounds:
        assert bound == pytest.approx(expected)


def test_a_schedule_is_asked_at_every_iteration():
    asked = []

    def schedule(*, experience, iteration):
        asked.append((experience, iteration))
        return 0.0

    plugin = MGEMPlugin(12, schedule, seed=0)
    train(make_strategy(make_model(), [plugin]), domain_stream().train_stream)
    assert asked == [(t, 3 * t + i) for t, i in itertools.product(range(3), range(3))]


def test_a_ramp_over_experiences_reaches_the_solver():
    solver = RecordingSolver()
    plugin = MGEMPlugin(12, LinearSchedule(0.9, 0.1, 3), solver=solver, seed=0)
    train(make_strategy(make_model(), [plugin], train_epochs=4), domain_stream().train_stream)
    assert sorted({round(float(b[0]), 6) for b in solver.bounds}) == [0.1, 0.5]


class TestOnlineStreams:
    """36 samples a task in sub-experiences of 5, that is 8 of them."""

    def online(self, stream, boundaries, size=5):
        return list(
            split_online_stream(
                stream.train_stream, size, seed=0, access_task_boundaries=boundaries
            )
        )

    @pytest.mark.parametrize("size", [5, 6])  # 6 divides 24: no sub-experience is marked as last
    def test_with_boundaries_a_task_is_a_memory(self, size):
        plugin = MGEMPlugin(10, 0.1, memory_groups=2, seed=0)
        rows = []
        watcher = Call(after_backward=lambda s: rows.append(_rows(plugin)))
        strategy = make_strategy(make_model(), [plugin, watcher])
        experiences = self.online(domain_stream(), boundaries=True, size=size)
        train(strategy, experiences)
        per_task = len(rows) // 3
        assert rows == [0] * per_task + [2] * per_task + [4] * per_task

    def test_without_boundaries_there_is_one_reservoir(self):
        plugin = MGEMPlugin(10, 0.1, memory_groups=2, seed=0)
        rows = []
        watcher = Call(after_backward=lambda s: rows.append(_rows(plugin)))
        strategy = make_strategy(make_model(), [plugin, watcher])
        train(strategy, self.online(domain_stream(), boundaries=False))
        assert set(rows) == {0, 2}
        assert len(plugin.memory) == 0
        assert sum(len(group.batch[1]) for group in plugin.memory.open_groups()) == 10

    @pytest.mark.parametrize("boundaries", [True, False])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant_trains_with_a_growing_head(self, variant, boundaries):
        stream = class_stream()
        plugin = plugin_of(variant)
        experiences = self.online(stream, boundaries)
        for experience in experiences:  # Avalanche strips what a growing head needs to know
            experience.classes_in_this_experience = sorted(experience.dataset.targets.uniques)
        strategy = make_strategy(make_model("growing head"), [plugin])
        train(strategy, experiences)
        assert all(p.isfinite().all() for p in strategy.model.parameters())
        assert plugin.last_projection is not None


def _rows(plugin):
    return 0 if plugin.last_projection is None else plugin.last_projection.dots.shape[1]


@pytest.mark.parametrize("peval_mode", ["epoch", "iteration"])
def test_evaluation_while_training_changes_nothing(peval_mode):
    stream = domain_stream()
    results = []
    for eval_every in (-1, 1):
        plugin = plugin_of("d")
        arguments = {"eval_every": eval_every, "peval_mode": peval_mode, "train_epochs": 2}
        strategy = make_strategy(make_model("batch norm"), [plugin], **arguments)
        for index, experience in enumerate(stream.train_stream):
            torch.manual_seed(index)
            order = torch.get_rng_state()
            strategy.train(experience, eval_streams=[stream.test_stream], shuffle=False)
            torch.set_rng_state(order)
        results.append(parameter_vector(strategy.model))
    assert torch.equal(*results)


class TestUnusualModels:
    """Each trains, and its steps are restricted."""

    def trained(self, model, **arguments):
        plugin = MGEMPlugin(12, 0.5, seed=0, **arguments)
        strategy = make_strategy(model, [plugin], train_epochs=4)
        train(strategy, domain_stream().train_stream)
        assert all(p.isfinite().all() for p in model.parameters())
        assert plugin.last_projection is not None
        return plugin

    @pytest.mark.parametrize("restrict", ["gradient", "update"])
    def test_sparse_embeddings(self, restrict):
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(8, 5, sparse=True)
                self.head = nn.Linear(5, 6)

            def forward(self, x):
                return self.head(self.embedding((x.abs() * 3).long().clamp(max=7)).mean(1))

        self.trained(Bag(), restrict=restrict)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing(self, reentrant):
        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 6)

            def forward(self, x):
                x = x.requires_grad_(True)
                return self.last(checkpoint(self.first, x, use_reentrant=reentrant).relu())

        self.trained(Checkpointed())

    def test_tied_parameters_by_either_name(self):
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        model[2].weight = model[0].weight
        groups = {"tied": ["2.weight"], "biases": ["*.bias"]}
        plugin = self.trained(model, parameter_groups=groups)
        assert plugin.last_projection.dots.shape[0] == 2

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("restrict", ["gradient", "update"])
    def test_other_precisions(self, dtype, restrict):
        class Cast(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = make_model().to(dtype)

            def forward(self, x):
                return self.net(x.to(dtype)).float()

        self.trained(Cast(), restrict=restrict)

    def test_a_group_of_one_sample_and_batch_norm_is_said(self):
        plugin = MGEMPlugin(3, memory_groups=3, seed=0)
        strategy = make_strategy(make_model("batch norm"), [plugin])
        with pytest.raises(ValueError, match="memory_groups: a group of one sample"):
            train(strategy, domain_stream().train_stream)


def test_the_gradient_of_a_parameter_at_learning_rate_zero_is_left_alone():
    """Adam's moments are of the gradients; what does not move is no part of the restriction."""

    def first_at_zero(model):
        first, *others = model.parameters()
        return torch.optim.Adam([{"params": [first], "lr": 0.0}, {"params": others, "lr": 0.1}])

    moments = []
    for plugins in ([MGEMPlugin(24, 0.0, seed=0)], []):
        seen, violated = [], []
        note = Call(
            before_update=lambda s, k=seen: k.append(next(s.model.parameters()).grad.clone()),
            after_update=lambda s, v=violated, p=plugins: v.append(
                bool(p) and p[0].last_projection
            ),
        )
        strategy = make_strategy(make_model(), [*plugins, note], optimizer=first_at_zero)
        train(strategy, domain_stream().train_stream)
        moments.append((seen, [bool(p) and p.violated for p in violated]))
    (ours, violated), (plain, _) = moments
    first = violated.index(True)
    assert ours[first].any()
    assert torch.equal(ours[first], plain[first])


def test_what_it_keeps_is_small():
    """A copy or a pickle carries no gradient matrix."""
    plugin = plugin_of("d")
    train(make_strategy(make_model(), [plugin], train_epochs=4), domain_stream().train_stream)
    assert plugin.last_projection.violated
    assert plugin.last_projection.gradient.numel() == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_variant_trains_on_cuda(setting, variant):
    plugin = plugin_of(variant)
    strategy = make_strategy(make_model(setting), [plugin], device="cuda")
    train(strategy, SETTINGS[setting][1]().train_stream)
    assert all(g.batch[0].is_cuda for g in plugin.memory.closed_groups())
    assert all(p.isfinite().all() for p in strategy.model.parameters())
