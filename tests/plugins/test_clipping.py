"""What the optimiser sees is the restricted gradient, made no longer than max_norm."""

import gc
import math
import pickle
import weakref

import pytest
import torch
from tiny import (
    N_FEATURES,
    Call,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import _global_optimizer_pre_hooks

from avalanche_mgem import ClipGradientPlugin, HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin

LR = 0.5
MAX_NORM = 0.05


def plain_sgd(model):
    return SGD(model.parameters(), lr=LR)


def model():
    torch.manual_seed(7)
    layers = [nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6)]
    return nn.Sequential(*layers)


def steps_taken(plugins, max_norm=MAX_NORM, mgem=None):
    """Train; return of each iteration the step over the rate, and mGEM's rows before others act."""
    before, found = {}, []

    def remember(strategy):
        before["theta"] = parameter_vector(strategy.model)
        before["rows"] = None if mgem is None else mgem._matrix.rows.clone()

    def measure(strategy):
        step = (before["theta"] - parameter_vector(strategy.model)) / LR
        found.append((step, before["rows"]))

    watched = [Call(before_forward=remember), *plugins, Call(after_update=measure)]
    strategy = make_strategy(model(), watched, optimizer=plain_sgd)
    train(strategy, domain_stream(2).train_stream)
    return found


PLUGINS = {
    "plain": lambda: [],
    "mgem": lambda: [MGEMPlugin(12, 0.0, seed=0, ridge="relative")],
    "migu": lambda: [MIGUPlugin(0.6, skip_tasks=0)],
    "migu update": lambda: [MIGUPlugin(0.6, skip_tasks=0, freeze="update", ungated="freeze")],
    "hybrid": lambda: [HybridMagnitudePlugin("frozen")],
    "mgem and migu": lambda: [
        MGEMPlugin(12, 0.0, seed=0, ridge="relative"),
        MIGUPlugin(0.6, freeze="update"),
    ],
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("plugins", PLUGINS)
def test_the_step_is_the_restricted_gradient_clipped(plugins, place):
    clip = ClipGradientPlugin(MAX_NORM)
    restricting = PLUGINS[plugins]()
    mgem = next((p for p in restricting if isinstance(p, MGEMPlugin)), None)
    norms = []
    watch = Call(after_update=lambda strategy: norms.append(clip.last_norm))
    ordered = [clip, *restricting] if place == "first" else [*restricting, clip]
    clipped = steps_taken([*ordered, watch], mgem=mgem)
    assert not _global_optimizer_pre_hooks
    # The first step is from the same parameters, on the same samples.
    free = steps_taken(PLUGINS[plugins]())[0][0]
    torch.testing.assert_close(clipped[0][0], free * (MAX_NORM / free.norm()), rtol=1e-3, atol=1e-6)
    for (step, rows), norm in zip(clipped, norms, strict=True):
        assert float(step.norm()) == pytest.approx(min(MAX_NORM, norm), rel=1e-3)
        if rows is not None and len(rows):
            lengths = rows.norm(dim=1) * step.norm()
            assert float((-(rows @ step) / lengths).max()) < 1e-4


def test_the_restricted_gradient_and_the_clipped_one_are_parallel():
    """Beside mGEM and MIGU, in every step: the gradient is caught where the hook scales it."""
    seen = []

    class Watched(ClipGradientPlugin):
        def _clip(self, strategy):
            before = gradient(strategy)
            super()._clip(strategy)
            seen.append((before, gradient(strategy)))

    def gradient(strategy):
        return torch.cat([p.grad.flatten() for p in strategy.model.parameters()]).clone()

    plugins = [Watched(MAX_NORM), MIGUPlugin(0.6), MGEMPlugin(12, 0.5, seed=0)]
    found = steps_taken(plugins)
    assert len(seen) == len(found) == 6
    for (before, after), (step, _) in zip(seen, found, strict=True):
        assert float(torch.cosine_similarity(before, after, dim=0)) == pytest.approx(1.0, abs=1e-5)
        assert float(after.norm()) <= MAX_NORM
        torch.testing.assert_close(step, after, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
def test_any_norm(norm_type):
    clip = ClipGradientPlugin(0.01, norm_type=norm_type)
    for step, _ in steps_taken([clip]):
        assert float(torch.linalg.vector_norm(step, norm_type)) <= 0.01 * 1.001


def test_a_norm_that_is_not_reached_changes_nothing():
    ends = []
    for beside in ([], [ClipGradientPlugin(1e6)]):
        plugins = [MGEMPlugin(12, seed=0), MIGUPlugin(0.5), *beside]
        strategy = train(make_strategy(make_model(), plugins), domain_stream(2).train_stream)
        ends.append(parameter_vector(strategy.model))
    assert torch.equal(*ends)


def test_under_a_restricted_update_the_gradient_is_clipped_and_the_step_is_in_the_cone():
    mgem = MGEMPlugin(12, 0.0, seed=0, restrict="update", ridge="relative")
    clip, before, harms = ClipGradientPlugin(MAX_NORM), {}, []

    def remember(strategy):
        before["theta"], before["rows"] = (
            parameter_vector(strategy.model),
            mgem._matrix.rows.clone(),
        )

    def measure(strategy):
        step = before["theta"] - parameter_vector(strategy.model)
        gradient = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
        assert float(gradient.norm()) <= MAX_NORM
        if len(before["rows"]):
            harms.append(float(-(before["rows"] @ step).min() / step.norm()))

    plugins = [clip, mgem, Call(before_forward=remember, after_update=measure)]
    adamw = lambda m: AdamW(m.parameters(), lr=0.02)  # noqa: E731
    train(make_strategy(model(), plugins, optimizer=adamw), domain_stream(2).train_stream)
    assert len(harms) == 3
    assert max(harms) < 1e-4


def spoil(strategy):
    strategy.model[0].weight.grad[0, 0] = math.inf


def test_a_norm_that_is_not_finite_is_an_error_before_the_step():
    clip = ClipGradientPlugin(1.0)
    strategy = make_strategy(model(), [clip, Call(before_update=spoil)])
    start = parameter_vector(strategy.model)
    with pytest.raises(FloatingPointError, match="norm is inf, in experience 0, iteration 0"):
        strategy.train(domain_stream(1).train_stream[0])
    assert torch.equal(parameter_vector(strategy.model), start)
    assert not _global_optimizer_pre_hooks  # nor where nobody trains it any more
    strategy.plugins.pop(1)
    strategy.train(domain_stream(1).train_stream[0])
    assert not _global_optimizer_pre_hooks


def test_a_norm_that_is_not_finite_may_pass_if_asked_for():
    clip = ClipGradientPlugin(1.0, error_if_nonfinite=False)
    strategy = make_strategy(model(), [clip, Call(before_update=spoil)])
    strategy.train(domain_stream(1).train_stream[0])
    assert math.isnan(clip.last_norm)


def test_a_hook_that_an_error_has_left_keeps_nothing_alive():
    strategy = make_strategy(model(), [ClipGradientPlugin(1.0), Call(before_update=stop)])
    with pytest.raises(KeyboardInterrupt):
        strategy.train(domain_stream(1).train_stream[0])
    alive, clip = weakref.ref(strategy.model), strategy.plugins[0]
    del strategy
    gc.collect()
    assert alive() is None
    clip.release_hooks()
    assert not _global_optimizer_pre_hooks


def stop(strategy):
    raise KeyboardInterrupt


def test_a_step_that_is_left_out_has_no_norm():
    clip, norms = ClipGradientPlugin(MAX_NORM), []
    poison = Call(before_backward=lambda s: setattr(s, "loss", s.loss * math.nan))
    look = Call(after_training_iteration=lambda s: norms.append(clip.last_norm))
    plugins = [poison, MIGUPlugin(on_nonfinite="skip"), clip, look]
    make_strategy(model(), plugins).train(domain_stream(1).train_stream[0])
    assert norms == [None] * 3


def test_other_optimisers_are_left_alone():
    other = nn.Linear(2, 2)
    optimizer = SGD(other.parameters(), lr=1.0)

    def step_another(strategy):
        other.weight.grad = torch.full_like(other.weight, 100.0)
        optimizer.step()

    plugins = [ClipGradientPlugin(MAX_NORM), Call(before_update=step_another)]
    start = other.weight.detach().clone()
    make_strategy(model(), plugins).train(domain_stream(1).train_stream[0])
    torch.testing.assert_close(start - other.weight, torch.full_like(start, 300.0))


def test_it_pickles_with_a_strategy():
    strategy = make_strategy(model(), [ClipGradientPlugin(MAX_NORM), MIGUPlugin()])
    stream = domain_stream(2).train_stream
    train(strategy, stream[:1])
    other = pickle.loads(pickle.dumps(strategy))
    ends = [train(each, stream, first=1).model for each in (strategy, other)]
    assert torch.equal(*map(parameter_vector, ends))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_max_norm_out_of_range(value):
    with pytest.raises(ValueError, match="max_norm must be a finite number > 0"):
        ClipGradientPlugin(value)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="norm_type must be a finite number > 0, got 0"):
        ClipGradientPlugin(1.0, norm_type=0)
    with pytest.raises(ValueError, match="error_if_nonfinite must be True or False, got 1"):
        ClipGradientPlugin(1.0, error_if_nonfinite=1)
