"""Steps that make their gradients themselves: what is restricted is each of these gradients."""

import copy
import gc
from collections import Counter

import pytest
import torch
from avalanche.training.supervised import Naive
from made_optimizers import (
    SAM,
    Again,
    ByKeyword,
    Lookahead,
    OnlyTheLoss,
    TwoSteps,
    Unhooked,
    UnhookedLookahead,
    WithAssignedGradients,
    WithClosure,
    WithEvents,
    gradients_anew,
    small_model,
)
from tiny import Call, class_stream, make_strategy, parameter_vector, train
from torch.optim import LBFGS, SGD, Adam
from torch.optim.optimizer import _global_optimizer_pre_hooks

from avalanche_mgem import ClipGradientPlugin, HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.bridge.watch import _WINDOWS

NAN = float("nan")
MAX_NORM = 0.1


@pytest.fixture(autouse=True)
def _no_hooks():
    _global_optimizer_pre_hooks.clear()  # of strategies that failed in other tests
    _WINDOWS.clear()
    yield
    _global_optimizer_pre_hooks.clear()  # one failed test is enough
    _WINDOWS.clear()


def mgem(restrict="gradient", **options):
    return MGEMPlugin(8, 0.0, restrict=restrict, seed=0, ridge="relative", **options)


def migu(freeze="gradient", **options):
    return MIGUPlugin(0.6, skip_tasks=0, freeze=freeze, **options)


PLUGINS = {
    "mgem": lambda how="raise": [mgem(on_nonfinite=how)],
    "mgem update": lambda how="raise": [mgem("update", on_nonfinite=how)],
    "migu": lambda how="raise": [migu(on_nonfinite=how)],
    "migu update": lambda how="raise": [migu("update", on_nonfinite=how)],
    "hybrid": lambda how="raise": [HybridMagnitudePlugin("frozen", low=0, on_nonfinite=how)],
    "all": lambda how="raise": [
        ClipGradientPlugin(MAX_NORM),
        migu(on_nonfinite=how),
        mgem(on_nonfinite=how),
        HybridMagnitudePlugin("frozen", on_nonfinite=how),
    ],
    "migu alone moves": lambda how="raise": [migu(ungated="freeze", on_nonfinite=how)],
    "clip": lambda how="raise": [ClipGradientPlugin(MAX_NORM)],
}


def sgd(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def lbfgs(model, **options):
    return LBFGS(model.parameters(), lr=0.5, max_iter=4, **options)


def sam(model, base=SGD):
    return SAM(model.parameters(), base, lr=0.1)


def run(plugins, optimizer=sgd, kind=Naive, n=3):
    strategy = make_strategy(small_model(), plugins, optimizer=optimizer, strategy=kind)
    train(strategy, class_stream().train_stream[:n])
    assert not _global_optimizer_pre_hooks
    assert not _WINDOWS
    assert not any(p._post_accumulate_grad_hooks for p in strategy.model.parameters())
    return strategy


# The same gradient, made once more


@pytest.mark.cover
@pytest.mark.parametrize(
    "kind", [WithClosure, ByKeyword, WithAssignedGradients, WithEvents, OnlyTheLoss, Again]
)
@pytest.mark.parametrize("plugins", PLUGINS)
def test_a_gradient_that_is_made_twice_is_restricted_as_once(plugins, kind):
    ends = [parameter_vector(run(PLUGINS[plugins](), kind=each).model) for each in (kind, Naive)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("plugins", PLUGINS)
def test_the_two_ways_of_sam_are_one(plugins):
    ends = [
        parameter_vector(run(PLUGINS[plugins](), sam, kind).model)
        for kind in (WithClosure, TwoSteps)
    ]
    if "clip" in plugins or plugins == "all":  # the ascent's length does not depend on it
        torch.testing.assert_close(*ends)
    else:
        assert torch.equal(*ends)


# What an optimiser sees


class Seen:
    """The gradients that an optimiser moves by, with the rows and masks of the plugins then."""

    def __init__(self, *plugins):
        self.found, self.plugins = [], plugins

    def look(self, optimizer):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        rows = [p._matrix.rows.clone() for p in self.plugins if isinstance(p, MGEMPlugin)]
        active = [r for p, r in zip(self.plugins, rows, strict=False) if p.last_projection]
        masks = [p.last_mask for p in self.plugins if isinstance(p, MIGUPlugin)]
        vector = torch.cat([g.flatten() for g in gradients])
        self.found.append((vector.clone(), [g.clone() for g in gradients], active, masks))

    def angles(self):
        """The least cosine of each gradient with a memory row."""
        return [
            float((rows @ vector / (rows.norm(dim=1) * vector.norm())).min())
            for vector, _, active, _ in self.found
            for rows in active
        ]


def watched(seen, kind):
    """An optimiser of the kind that shows what it moves by."""

    class Base(SGD):
        def step(self, closure=None):
            seen.look(self)
            return super().step(closure)

    class Searching(LBFGS):
        def _gather_flat_grad(self):
            seen.look(self)
            return super()._gather_flat_grad()

    return {
        "sam": lambda m: SAM(m.parameters(), Base, lr=0.1),
        "lookahead": lambda m: Lookahead(m.parameters(), lambda p: Base(p, lr=0.1)),
        "sgd": lambda m: Base(m.parameters(), lr=0.1),
        "lbfgs": lambda m: Searching(m.parameters(), lr=0.5, max_iter=4),
        "lbfgs with a search": lambda m: Searching(
            m.parameters(), max_iter=4, line_search_fn="strong_wolfe"
        ),
    }[kind]


SEARCHES = ["lbfgs", "lbfgs with a search"]
KINDS = [
    *((name, WithClosure) for name in ("sam", "lookahead", "sgd", *SEARCHES)),
    ("sam", TwoSteps),
    ("sgd", Again),
]


@pytest.mark.parametrize(("optimizer", "kind"), KINDS)
def test_every_gradient_is_in_the_cone(optimizer, kind):
    plugin = mgem()
    seen = Seen(plugin)
    run([plugin], watched(seen, optimizer), kind)
    assert len(seen.angles()) >= 6
    assert min(seen.angles()) > -1e-3


@pytest.mark.parametrize(("optimizer", "kind"), KINDS)
@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_every_gradient_is_masked(optimizer, kind, freeze):
    plugin, moved = migu(freeze), Counter()
    seen = Seen(plugin)
    before = {}

    def remember(strategy):
        before.update({n: p.detach().clone() for n, p in strategy.model.named_parameters()})

    def look(strategy):
        for layer, kept in plugin.last_mask.items():
            rows = strategy.model.get_submodule(layer).weight != before[f"{layer}.weight"]
            moved.update(masked=int(rows[~kept].sum()), kept=int(rows[kept].sum()))

    plugins = [Call(before_forward=remember), plugin, Call(after_update=look)]
    run(plugins, watched(seen, optimizer), kind)
    for _, gradients, _, (masks,) in seen.found:
        for layer, gradient in (("0", gradients[0]), ("2", gradients[2])):
            assert not gradient[~masks[layer]].any()
    assert moved["kept"] > 0
    if freeze == "update" or optimizer in ("sam", "sgd"):  # of plain steps
        assert moved["masked"] == 0


@pytest.mark.parametrize(("optimizer", "kind"), KINDS)
@pytest.mark.parametrize("first", [True, False])
def test_every_gradient_is_clipped_last(optimizer, kind, first):
    clip, plugin = ClipGradientPlugin(MAX_NORM), mgem()
    seen = Seen(plugin)
    plugins = [clip, plugin] if first else [plugin, clip]
    run(plugins, watched(seen, optimizer), kind)
    assert max(float(vector.norm()) for vector, *_ in seen.found) < MAX_NORM * 1.001
    assert min(seen.angles()) > -1e-3
    assert clip.last_norm is not None


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_a_search_does_no_harm_by_its_update(restrict):
    plugin, harms, before = mgem(restrict), [], {}

    def remember(strategy):
        before["theta"] = parameter_vector(strategy.model)

    def look(strategy):
        if plugin.last_projection is not None:
            step = before["theta"] - parameter_vector(strategy.model)
            rows = plugin._matrix.rows
            harms.append(float((-(rows @ step) / (rows.norm(dim=1) * step.norm())).max()))

    run([Call(before_forward=remember), plugin, Call(after_update=look)], lbfgs, WithClosure)
    assert (max(harms) < 1e-3) == (restrict == "update")


@pytest.mark.parametrize("kind", [WithClosure, TwoSteps])
@pytest.mark.parametrize("optimizer", [lbfgs, sam, lambda m: sam(m, Adam)])
def test_what_is_frozen_does_not_move(optimizer, kind):
    if optimizer is lbfgs and kind is TwoSteps:
        return
    ends = {}

    def keep(strategy):
        if strategy.clock.train_exp_counter == 1:
            ends["first"] = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}

    plugins = [Call(before_training_exp=keep), HybridMagnitudePlugin("frozen", low=0)]
    strategy = run(plugins, optimizer, kind)
    now = dict(strategy.model.named_parameters())
    changed = {n for n, old in ends["first"].items() if not torch.equal(now[n], old)}
    assert changed == {"4.weight", "4.bias"}


# Gradients that are not finite


class Poisoned:
    """A strategy whose so many-th gradient in the fifth step is not finite."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def spoil(self, strategy, loss):
        self.count += 1
        now = strategy.clock.train_iterations == 4
        return loss * NAN if now and self.count == self.at else loss

    def kind(self, base):
        outer = self

        class Spoilt(base):
            def criterion(self):
                outer.count = 0
                return outer.spoil(self, super().criterion())

            def optimizer_step(self):
                own, self._criterion = self._criterion, lambda *pair: outer.spoil(self, own(*pair))
                try:
                    super().optimizer_step()
                finally:
                    self._criterion = own

        Spoilt.__name__ = base.__name__
        return Spoilt


def state_of(strategy):
    """All that a step may change: parameters, and the optimisers' state and settings."""
    optimizers = [strategy.optimizer, getattr(strategy.optimizer, "base_optimizer", None)]
    names = {id(p): n for n, p in strategy.model.named_parameters()}
    states = []
    for each in filter(None, optimizers):
        if isinstance(each, SAM):
            continue  # where it was is nothing that lasts
        states.append({names[id(p)]: copy.deepcopy(own) for p, own in each.state.items()})
        states.append([{**g, "params": None} for g in copy.deepcopy(each.param_groups)])
    return parameter_vector(strategy.model), states


def is_same(one, other):
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


WAYS = {
    "sgd": (sgd, WithClosure, (1, 2)),
    "adam": (lambda m: Adam(m.parameters(), lr=0.1), WithClosure, (2,)),
    "lbfgs": (lbfgs, WithClosure, (1, 2, 4)),
    "lbfgs with a search": (
        lambda m: lbfgs(m, line_search_fn="strong_wolfe"),
        WithClosure,
        (1, 3),
    ),
    "sam": (sam, WithClosure, (1, 2)),
    "sam of adam": (lambda m: sam(m, Adam), WithClosure, (2,)),
    "sam in two steps": (sam, TwoSteps, (1, 2)),
    "lookahead": (lambda m: Lookahead(m.parameters()), WithClosure, (1, 2)),
}


@pytest.mark.cover
@pytest.mark.parametrize("how", ["raise", "skip"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plugins", ["mgem", "mgem update", "migu update", "all"])
def test_a_gradient_of_the_step_that_is_not_finite_changes_nothing(plugins, way, how):
    optimizer, base, places = WAYS[way]
    for at in places:
        kept = {}

        def remember(strategy, kept=kept):
            kept["before"] = state_of(strategy)

        def look(strategy, kept=kept):
            if strategy.clock.train_iterations == 4:
                kept["same"] = is_same(kept["before"], state_of(strategy))

        restricting = PLUGINS[plugins](how)
        kind = Poisoned(at).kind(base)
        strategy = make_strategy(
            small_model(),
            [Call(before_training_iteration=remember), *restricting, Call(after_update=look)],
            optimizer=optimizer,
            strategy=kind,
        )
        if how == "raise":
            with pytest.raises(FloatingPointError, match=r"in experience 1, iteration 1"):
                train(strategy, class_stream().train_stream[:2])
            assert is_same(kept["before"], state_of(strategy))
        else:
            train(strategy, class_stream().train_stream[:2])
            assert kept["same"], at
            guarded = [p for p in restricting if hasattr(p, "skipped_steps")]
            assert [p.skipped_steps for p in guarded] == [1] * len(guarded)
            assert parameter_vector(strategy.model).isfinite().all()
        for plugin in restricting:
            plugin.release_hooks()
        assert not _global_optimizer_pre_hooks


# Steps that cannot be seen


@pytest.mark.parametrize(
    ("plugins", "match"),
    [
        ("mgem", r"the step of Unhooked has not called .* or use restrict='update'"),
        ("migu", r"the step of Unhooked has not called .* or use freeze='update'"),
        ("clip", r"the step of Unhooked has not called .* by its `step`$"),
    ],
)
def test_a_gradient_that_cannot_be_restricted_is_an_error_in_the_first_such_step(plugins, match):
    with pytest.raises(RuntimeError, match=match):
        run(PLUGINS[plugins](), lambda m: Unhooked(m.parameters()), WithClosure)
    assert not _global_optimizer_pre_hooks


@pytest.mark.parametrize("plugins", ["mgem update", "migu update", "hybrid"])
def test_what_is_restricted_around_a_step_needs_no_hooks(plugins):
    ends = [
        parameter_vector(run(PLUGINS[plugins](), optimizer, WithClosure).model)
        for optimizer in (
            lambda m: Unhooked(m.parameters(), lr=0.1),
            lambda m: SGD(m.parameters(), lr=0.1),
        )
    ]
    torch.testing.assert_close(*ends)


def test_a_wrapper_without_hooks_hands_its_closure_on():
    ends = [
        parameter_vector(run(PLUGINS["mgem"](), optimizer, WithClosure).model)
        for optimizer in (
            lambda m: UnhookedLookahead(m.parameters()),
            lambda m: Lookahead(m.parameters()),
        )
    ]
    assert torch.equal(*ends)


def test_a_gradient_made_after_the_step_is_nobodys_business():
    class Looks(Naive):
        def optimizer_step(self):
            super().optimizer_step()
            gradients_anew(self)

    run(PLUGINS["all"](), sgd, Looks)


def test_a_strategy_that_failed_and_is_gone_leaves_no_hook():
    def stop(strategy):
        if _global_optimizer_pre_hooks:
            raise InterruptedError

    strategy = make_strategy(small_model(), [mgem(), Call(before_update=stop)], optimizer=sgd)
    with pytest.raises(InterruptedError):
        train(strategy, class_stream().train_stream)
    assert len(_global_optimizer_pre_hooks) == 1
    del strategy
    gc.collect()
    assert not _global_optimizer_pre_hooks
