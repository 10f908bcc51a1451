"""Every plugin under optimisers of all kinds: whatever the groups have, and however they step."""

import pytest
import torch
from avalanche.training.supervised import Naive
from made_optimizers import (
    TENTH,
    UNUSUAL,
    ApartFromTheFirst,
    ByHand,
    ScheduleFree,
    StepsAndDecays,
    TwoOptimizers,
    Unhooked,
    UnhookedLookahead,
    WithoutTheFirst,
    small_model,
)
from tiny import (
    N_FEATURES,
    Call,
    class_stream,
    make_strategy,
    parameter_vector,
    relative_distance,
    train,
)
from torch import nn, optim
from torch.optim import SGD, AdamW
from transformers.optimization import Adafactor

from avalanche_mgem import ClipGradientPlugin, HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.model.holding import HeldRows

ADAFACTORS = {
    "relative": {"lr": None, "relative_step": True, "warmup_init": True},
    "relative, not warmed up": {"lr": None, "relative_step": True, "scale_parameter": False},
    "with a rate": {"lr": 0.02, "relative_step": False, "weight_decay": 0.1},
}
OPTIMIZERS = {
    **{name: (lambda m, make=make: make(m.parameters())) for name, make in UNUSUAL.items()},
    **{
        f"adafactor, {name}": (lambda m, options=options: Adafactor(m.parameters(), **options))
        for name, options in ADAFACTORS.items()
    },
    "lr is None": lambda m: TENTH["lr is None"](m.parameters()),
}


def sgd(model):
    return SGD(model.parameters(), lr=0.1)


def gem(restrict="update", strength=0.5, **options):
    return MGEMPlugin(12, strength, seed=0, restrict=restrict, ridge="relative", **options)


def run(plugins, optimizer, n=3, **arguments):
    """Train on tasks of classes of their own, whose gradients conflict."""
    strategy = make_strategy(small_model(), plugins, optimizer=optimizer, **arguments)
    return train(strategy, class_stream().train_stream[:n])


class Steps:
    """Remembers the parameters before each step, and calls a function of what they were after it.

    Behind it and before it stand the plugins; mGEM has acted then.
    """

    def __init__(self, look):
        self.look, self.before = look, {}
        self.first = Call(before_forward=self.remember)
        self.last = Call(after_update=self.after)

    def remember(self, strategy):
        self.before = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}

    def after(self, strategy):
        self.look(strategy, self.before)

    def around(self, *plugins):
        return [self.first, *plugins, self.last]


# Rates that groups do not tell


@pytest.mark.cover
@pytest.mark.parametrize("restrict", ["gradient", "update"])
@pytest.mark.parametrize("name", TENTH)
def test_a_step_of_the_same_size_makes_the_same_run(name, restrict):
    """So the memory strength means the same, wherever the size of a step comes from."""
    plain = run([gem(restrict)], sgd)
    other = run([gem(restrict)], lambda m: TENTH[name](m.parameters()))
    free = run([], sgd)
    found, expected, without = (parameter_vector(s.model) for s in (other, plain, free))
    assert relative_distance(found, expected) < 1e-5
    assert relative_distance(without, expected) > 1e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_itself_does_no_harm(name):
    plugin, harms, violations = gem(strength=0.0), [], []

    def look(strategy, before):
        if plugin.last_projection is None:
            return
        now = dict(strategy.model.named_parameters())
        step = torch.cat([(old - now[n]).detach().flatten() for n, old in before.items()])
        rows = plugin._matrix.rows / torch.cat(
            [
                torch.full((old.numel(),), factor)
                for old, factor in zip(before.values(), plugin._step.metric, strict=True)
            ]
        )
        violations.append(plugin.last_projection.violated)
        harms.append(float((-(rows @ step) / (rows.norm(dim=1) * step.norm())).max()))

    run(Steps(look).around(plugin), OPTIMIZERS[name])
    assert len(harms) == 6
    assert max(harms) < 1e-3
    assert any(violations)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_small_step_is_not_pushed_by_a_large_one(strength):
    """With lr=1 for a rate, the memory's push would be a million times the step."""
    lengths = []

    def look(strategy, before):
        now = dict(strategy.model.named_parameters())
        lengths.append(float(sum((old - now[n].detach()).norm() ** 2 for n, old in before.items())))

    def smaller(model):
        optimizer = TENTH["lr multiplies d"](model.parameters())
        optimizer.param_groups[0]["d"] = 1e-6
        return optimizer

    run(Steps(look).around(gem(strength=strength)), smaller)
    assert max(lengths) ** 0.5 < 1e-4


# Rows that are held


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_rows_do_not_move(name):
    plugin, seen = MIGUPlugin(0.6, skip_tasks=0, freeze="update"), []

    def look(strategy, before):
        for layer, kept in plugin.last_mask.items():
            weight = strategy.model.get_submodule(layer).weight
            moved = (weight != before[f"{layer}.weight"]).any(1)
            assert not (moved & ~kept).any()
            seen.append(bool((moved & kept).any()))

    strategy = run(Steps(look).around(plugin), OPTIMIZERS[name])
    assert any(seen)
    free = run([], OPTIMIZERS[name])
    assert not torch.equal(parameter_vector(strategy.model), parameter_vector(free.model))


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="torch has no Muon")
@pytest.mark.parametrize("freeze", ["gradient", "update"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_muon_moves_masked_rows_by_its_momentum_alone(momentum, freeze):
    """It makes the update orthogonal, which leaves rows of zeros as they are."""
    torch.manual_seed(0)
    layers = [nn.Linear(N_FEATURES, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 6)]
    model = nn.Sequential(*layers)
    for layer in layers[::2]:
        layer.bias = None  # Muon takes matrices only
    plugin, moved = MIGUPlugin(0.6, skip_tasks=0, freeze=freeze), []

    def look(strategy, before):
        for layer, kept in plugin.last_mask.items():
            rows = (model.get_submodule(layer).weight != before[f"{layer}.weight"]).any(1)
            assert rows[kept].any()
            moved.append(bool(rows[~kept].any()))

    decay = 0.0 if freeze == "gradient" else 0.1  # moves rows as well
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": decay}
    optimizer = lambda m: optim.Muon(m.parameters(), **options)  # noqa: E731
    strategy = make_strategy(model, Steps(look).around(plugin), optimizer=optimizer)
    train(strategy, class_stream().train_stream)
    assert any(moved) is (freeze == "gradient" and momentum > 0)


@pytest.mark.cover
@pytest.mark.parametrize("freeze", ["gradient", "update"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_ungated_does_not_move(name, freeze):
    plugin = MIGUPlugin(0.5, skip_tasks=0, freeze=freeze, ungated="freeze")
    start = small_model()
    strategy = run([plugin], OPTIMIZERS[name])
    for layer in (0, 2):
        assert torch.equal(strategy.model[layer].bias, start[layer].bias)
    assert not torch.equal(strategy.model[4].bias, start[4].bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_masked_and_nothing_frozen_is_the_plain_run_to_the_bit(name):
    plugins = [
        MIGUPlugin(0.0, skip_tasks=0, freeze="update"),
        HybridMagnitudePlugin("initialized"),
        ClipGradientPlugin(1e9),
    ]
    if name == "unhooked":  # there is nothing to clip by
        plugins.pop()
    ends = [parameter_vector(run(each, OPTIMIZERS[name]).model) for each in (plugins, [])]
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_modules_do_not_move(name):
    seen = []

    def look(strategy, before):
        if strategy.clock.train_exp_counter:
            now = dict(strategy.model.named_parameters())
            seen.append({n for n, old in before.items() if not torch.equal(now[n], old)})

    run(Steps(look).around(HybridMagnitudePlugin("frozen")), OPTIMIZERS[name])
    assert len(seen) == 6
    assert set.union(*seen) == {"2.weight", "2.bias", "4.weight", "4.bias"}


def test_rows_are_copied_beyond_the_first_step_only_where_hooks_are_not_enough(monkeypatch):
    """A step that the optimiser's hooks have held once, they hold."""
    copied = []
    made = HeldRows.__init__

    def counted(self, *arguments):
        copied.append(self)
        made(self, *arguments)

    monkeypatch.setattr(HeldRows, "__init__", counted)

    def count(optimizer, kind):
        copied.clear()
        plugin = MIGUPlugin(0.6, skip_tasks=0, freeze="update")
        run([plugin], optimizer, n=2, strategy=kind)
        return len(copied)

    assert count(sgd, Naive) == 2 * 2  # two layers, once an experience
    assert count(lambda m: Unhooked(m.parameters()), Naive) == 6 * 2
    assert count(sgd, ByHand) == 6 * 2


# Steps that are not the optimiser's `step`, and two optimisers


def test_rows_are_held_where_a_strategy_moves_them_by_hand():
    plugin = MIGUPlugin(0.6, skip_tasks=0, freeze="update", score="weight")

    def look(strategy, before):
        for layer, kept in plugin.last_mask.items():
            moved = strategy.model.get_submodule(layer).weight != before[f"{layer}.weight"]
            assert torch.equal(moved.any(1), kept)

    class Shaken(ByHand):
        def optimizer_step(self):
            super().optimizer_step()
            for p in self.model.parameters():
                p.data.mul_(0.9)

    run(Steps(look).around(plugin), sgd, strategy=Shaken)


@pytest.mark.parametrize("kind", [TwoOptimizers, ApartFromTheFirst])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_two_optimisers_are_restricted(kind, restrict):
    """Also where the second one alone has the first layer."""
    plugin, harms = gem(restrict, 0.0), []

    def look(strategy, before):
        if plugin.last_projection is not None:
            z = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
            if restrict == "update":
                now = dict(strategy.model.named_parameters())
                z = torch.cat([(old - now[n]).detach().flatten() for n, old in before.items()])
            metric = [1.0] * len(before) if restrict == "gradient" else plugin._step.metric
            rows = plugin._matrix.rows / torch.cat(
                [
                    torch.full((old.numel(),), factor)
                    for old, factor in zip(before.values(), metric, strict=True)
                ]
            )
            harms.append(float((-(rows @ z) / (rows.norm(dim=1) * z.norm())).max()))

    momentum = lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9)  # noqa: E731
    run(Steps(look).around(plugin), momentum, strategy=kind)
    assert len(harms) == 6
    assert max(harms) < 1e-3


@pytest.mark.parametrize("kind", [TwoOptimizers, ApartFromTheFirst])
def test_two_optimisers_move_no_masked_row(kind):
    plugin = MIGUPlugin(0.6, skip_tasks=0, freeze="update")

    def look(strategy, before):
        for layer, kept in plugin.last_mask.items():
            moved = strategy.model.get_submodule(layer).weight != before[f"{layer}.weight"]
            assert not moved[~kept].any()

    run(Steps(look).around(plugin), lambda m: AdamW(m.parameters(), lr=0.1), strategy=kind)


def test_the_norm_is_that_of_all_optimisers():
    norms, clip = [], ClipGradientPlugin(1e-3)

    def look(strategy, before):
        gradients = [p.grad.flatten() for p in strategy.model.parameters()]
        norms.append(float(torch.cat(gradients).norm()))

    run(Steps(look).around(clip), sgd, strategy=ApartFromTheFirst)
    assert max(norms) <= 1.001e-3
    assert clip.last_norm > 1e-3


def test_parameters_in_no_group_are_no_part_of_the_problem():
    plugin, angles = gem("gradient", 0.0), []

    def look(strategy, before):
        assert torch.equal(strategy.model[0].weight, before["0.weight"])
        if plugin.last_projection is not None and plugin.last_projection.violated:
            z = torch.cat([p.grad.flatten() for p in strategy.model[1:].parameters()])
            rows = plugin._matrix.rows[:, 6 * 8 + 8 :]
            angles.append(float((-(rows @ z) / (rows.norm(dim=1) * z.norm())).max()))

    run(Steps(look).around(plugin), sgd, strategy=WithoutTheFirst)
    assert angles
    assert max(angles) < 1e-3


# What cannot be restricted


def test_a_gradient_that_is_not_clipped_is_an_error():
    with pytest.raises(RuntimeError, match=r"optimizer: the step of Unhooked has not called"):
        run([ClipGradientPlugin(1.0)], lambda m: Unhooked(m.parameters()))
    run([ClipGradientPlugin(1.0)], lambda m: UnhookedLookahead(m.parameters()))


@pytest.mark.parametrize("make", [ScheduleFree, lambda p: StepsAndDecays(p, lr=0.1), optim.Adam])
def test_state_of_masked_rows_stays(make):
    plugin, states = MIGUPlugin(0.6, skip_tasks=0, freeze="update"), {}

    def keep(strategy):
        for n, p in strategy.model.named_parameters():
            for key, value in strategy.optimizer.state.get(p, {}).items():
                if torch.is_tensor(value) and value.ndim:
                    states[n, key] = value.clone()

    def look(strategy, before):
        for layer, kept in plugin.last_mask.items():
            state = strategy.optimizer.state[strategy.model.get_submodule(layer).weight]
            for key, value in state.items():
                if (f"{layer}.weight", key) in states:
                    old = states[f"{layer}.weight", key]
                    assert torch.equal(value[~kept], old[~kept])

    steps = Steps(look)
    run([Call(before_update=keep), *steps.around(plugin)], lambda m: make(m.parameters()))
