"""The hybrid strategy beside other plugins, before and after them."""

import copy
import random

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    GEMPlugin,
    LwFPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from lookalikes import with_lora
from tiny import (
    N_CLASSES,
    N_FEATURES,
    Call,
    class_stream,
    domain_stream,
    make_model,
    make_strategy,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.methods import penalties

PEERS = {
    "replay": lambda: ReplayPlugin(12),
    "ewc": lambda: EWCPlugin(1.0),
    "ewc online": lambda: EWCPlugin(1.0, mode="online", decay_factor=0.5),
    "si": lambda: SynapticIntelligencePlugin(0.1),
    "our si": lambda: penalties.SynapticIntelligencePlugin(0.1),
    "lwf": LwFPlugin,
    "our lwf": penalties.LwFPlugin,
    "agem": lambda: AGEMPlugin(12, 12),
    "gem": lambda: GEMPlugin(6, 0.5),
    "mgem": lambda: MGEMPlugin(6, seed=0),
    "mgem update": lambda: MGEMPlugin(6, seed=0, restrict="update", parameter_groups="layer"),
    "mgem groups": lambda: MGEMPlugin(
        6,
        seed=0,
        memory_groups=2,
        refresh_every=2,
        parameter_groups={"a": ["0", "1"], "b": ["[3-9]*"]},
    ),
    "migu": lambda: MIGUPlugin(0.5),
    "migu update": lambda: MIGUPlugin(
        0.5, freeze="update", ungated="freeze", score="random", seed=0
    ),
    "migu all": lambda: MIGUPlugin(0.5, skip_tasks=0, target_modules="all-linear"),
}


def deep():
    torch.manual_seed(7)
    layers = []
    for width in (N_FEATURES, 8):
        layers += [nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, N_CLASSES))


def states(plugins, model, stream, **options):
    """Train; return the model's tensors after each experience."""
    found = []
    optimizer = options.pop("optimizer", lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1))
    strategy = make_strategy(model, plugins, optimizer=optimizer, train_epochs=2, **options)
    for index, experience in enumerate(stream):
        torch.manual_seed(100 + index)
        random.seed(index)  # AGEM draws its memory with it
        strategy.train(experience)
        found.append(copy.deepcopy(model.state_dict()))
        assert all(p.requires_grad for p in model.parameters())
        assert all(m.training for m in model.modules())
    return found


def moved(one, other):
    return {n.split(".")[0] for n, value in one.items() if not torch.equal(value, other[n])}


@pytest.mark.cover
@pytest.mark.parametrize("low", [0, 1])
@pytest.mark.parametrize("peer", PEERS)
def test_in_any_order_what_is_frozen_stays(peer, low):
    ends = []
    for first in (True, False):
        plugins = [HybridMagnitudePlugin("frozen", low=low), PEERS[peer]()]
        plugins = plugins if first else plugins[::-1]
        found = states(plugins, deep(), domain_stream().train_stream)
        expected = {"6"} if low == 0 else {"6", "3", "4"}
        if peer == "migu update":
            expected.discard("4")  # it freezes what is ungated; the statistics of 4 move
            assert moved(found[1], found[2]) - {"4"} == expected
        else:
            assert moved(found[1], found[2]) == expected
        ends.append(found[-1])
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize("peer", ["mgem", "mgem update", "migu"])
def test_in_any_order_without_task_boundaries(peer):
    """What is frozen changes in the midst of an experience, and between two."""
    ends = []
    for turn in (1, -1):
        plugin, trained = HybridMagnitudePlugin(decide_every=2, granularity="module", seed=0), []
        look = Call(after_update=lambda s, p=plugin, t=trained: t.append(p.last_decision.trained))
        plugins = [plugin, PEERS[peer]()][::turn]
        stream = split_online_stream(
            domain_stream().train_stream, experience_size=24, access_task_boundaries=False
        )
        ends.append((states([*plugins, look], deep(), list(stream))[-1], trained))
    assert ends[0][1] == ends[1][1]
    assert len(set(ends[0][1])) > 1
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name


@pytest.mark.parametrize("peer", PEERS)
def test_with_all_modules_nothing_changes_for_the_others(peer):
    stream = domain_stream().train_stream
    plugin = HybridMagnitudePlugin(threshold=2.0, seed=0)
    ours = states([plugin, PEERS[peer]()], deep(), stream)[-1]
    alone = states([PEERS[peer]()], deep(), stream)[-1]
    for name, value in ours.items():
        assert torch.equal(value, alone[name]), name
    assert plugin.last_decision.similarity is not None


@pytest.mark.parametrize("first", [True, False])
def test_the_restriction_of_mgem_holds_for_what_trains(first):
    """The step of the modules that train does no harm to any row over these modules."""
    harms = []
    mgem = MGEMPlugin(12, 0.0, seed=0, ridge="relative")

    def measure(strategy):
        if mgem.last_projection is None:
            return
        gradient = [p.grad for p in strategy.model.parameters() if p.requires_grad]
        z = torch.cat([g.flatten() for g in gradient])
        for row in mgem._matrix.rows:
            assert len(row) == len(z)
            harms.append(float(-(row @ z) / (row.norm() * z.norm())))

    plugins = [HybridMagnitudePlugin("frozen", low=1), mgem]
    plugins = plugins if first else plugins[::-1]
    sgd = lambda m: SGD(m.parameters(), lr=0.2)  # noqa: E731
    states(
        [*plugins, Call(before_update=measure)], deep(), domain_stream().train_stream, optimizer=sgd
    )
    assert len(harms) > 12
    assert max(harms) < 1e-4


@pytest.mark.parametrize("peer", ["replay", "ewc", "lwf", "mgem", "migu"])
@pytest.mark.parametrize("setting", ["growing head", "a head a task"])
def test_heads_of_all_kinds(setting, peer):
    model = make_model(setting)
    stream = class_stream(task_labels=setting == "a head a task").train_stream
    extra = {"mgem": lambda: MGEMPlugin(6, seed=0), **PEERS}[peer]()
    plugins = [HybridMagnitudePlugin("frozen", low=0), extra]
    found = states(plugins, model, stream)
    shared = [n for n in found[0] if n.startswith(("0.", "features."))]
    assert shared
    assert all(torch.equal(found[0][n], found[2][n]) for n in shared)


def test_beside_lora_the_base_stays_somebody_elses():
    model = with_lora(deep(), ["0", "3"], {"default": 2})
    model[6].requires_grad_(True)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    start = copy.deepcopy(model.state_dict())
    plugin = HybridMagnitudePlugin(threshold=-2.0, seed=0)  # always related: one module
    strategy = make_strategy(model, [plugin])
    train(strategy, domain_stream(2).train_stream)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert plugin.last_decision.modules == ("3", "0")
    assert plugin.last_decision.trained == ("3",)
    end = model.state_dict()
    assert all(torch.equal(start[n], end[n]) for n in start if "base_layer" in n)
    assert not torch.equal(start["0.lora_B.default.weight"], end["0.lora_B.default.weight"])


STOPS = {
    "before an epoch": "before_training_epoch",
    "after an epoch": "after_training_epoch",
    "in an epoch": "before_training_iteration",
}


def stopper(event):
    """Stops each experience in its second epoch of three, as early stopping does."""

    def stop(strategy):
        if strategy.clock.train_exp_epochs == 1:
            strategy.stop_training()

    return Call(**{STOPS[event]: stop})


@pytest.mark.parametrize("event", STOPS)
@pytest.mark.parametrize("order", ["ehs", "esh", "hes", "hse", "seh", "she"])
def test_whoever_stops_early_what_ends_a_task_finds_the_whole_model(order, event):
    ewc, plugin, frozen = EWCPlugin(1.0), HybridMagnitudePlugin("frozen", low=0), []
    own = {"e": ewc, "h": plugin, "s": stopper(event)}
    look = Call(after_forward=lambda s: frozen.append(not s.model[0].weight.requires_grad))
    model = deep()
    strategy = make_strategy(model, [*(own[each] for each in order), look], train_epochs=3)
    stream = domain_stream(2).train_stream
    strategy.train(stream[0])
    before, listed = copy.deepcopy(model.state_dict()), list(strategy.plugins)
    strategy.train(stream[1])
    assert all(importance.data.sum() > 0 for importance in ewc.importances[1].values())
    assert moved(before, model.state_dict()) == {"6"}
    assert any(frozen)
    assert not frozen[0]
    assert strategy.plugins == listed


def test_statistics_stand_whatever_runs_between_two_epochs():
    disturb = lambda s: s.model(torch.randn(4, N_FEATURES))  # noqa: E731
    model = deep()
    plugins = [HybridMagnitudePlugin("frozen", low=0), Call(after_training_epoch=disturb)]
    strategy = make_strategy(model, plugins, train_epochs=3)
    stream = domain_stream(2).train_stream
    strategy.train(stream[0])
    strategy.plugins[1] = Call(
        after_training_epoch=lambda s: s.clock.train_exp_epochs < 2 and disturb(s)
    )
    before = copy.deepcopy(model.state_dict())
    strategy.train(stream[1])
    assert moved(before, model.state_dict()) == {"6"}


def test_importances_of_ewc_are_those_of_the_whole_model():
    """It measures them when the task is over, and so with everything thawed."""
    for turn in (1, -1):
        ewc = EWCPlugin(1.0)
        plugins = [HybridMagnitudePlugin("frozen", low=0), ewc][::turn]
        states(plugins, deep(), domain_stream(2).train_stream)
        assert all(importance.data.sum() > 0 for importance in ewc.importances[1].values())


class WithUnused(nn.Module):
    """Has layers that its forward pass does not call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.unused = nn.Linear(N_FEATURES, 8)
        self.body, self.head = nn.Linear(N_FEATURES, 8), nn.Linear(8, N_CLASSES)
        self.auxiliary = nn.ModuleList([nn.Linear(8, 4)])

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


@pytest.mark.parametrize("freeze", ["gradient", "update"])
@pytest.mark.parametrize("first", [True, False])
def test_every_gated_layer_that_is_called_may_be_frozen(first, freeze):
    """The gate is left with layers that are never called, which is no error of the model's."""
    modules = {"body": ["body.*"], "unused": ["unused.*", "auxiliary.*"]}
    hybrid = HybridMagnitudePlugin("frozen", low=0, modules=modules, heads=["head"])
    migu = MIGUPlugin(0.5, heads=["head"], freeze=freeze)
    plugins = [hybrid, migu] if first else [migu, hybrid]
    stream = domain_stream().train_stream
    found = states(plugins, WithUnused(), stream)
    assert moved(found[0], found[1]) == {"head"}
    alone = [HybridMagnitudePlugin("frozen", low=0, modules=modules, heads=["head"])]
    expected = states(alone, WithUnused(), stream)
    assert all(torch.equal(found[-1][name], expected[-1][name]) for name in expected[-1])


def test_that_no_layer_is_called_at_all_is_still_an_error():
    class Around(WithUnused):
        def forward(self, x):
            return nn.functional.linear(x[:, :1], torch.ones(N_CLASSES, 1)).requires_grad_()

    with pytest.raises(RuntimeError, match="no output of a gated layer was seen"):
        states([MIGUPlugin(0.5, heads=["head"])], Around(), domain_stream().train_stream)
