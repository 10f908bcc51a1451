"""Polyak's memory strength: what the linear model of the memory's loss promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nasty import rows_and_gradient

from avalanche_mgem.restriction import (
    LinearSchedule,
    PolyakStrength,
    cone,
    project,
)
from avalanche_mgem.restriction.polyak import PolyakBounds

MODULES = [[slice(0, 3)], [slice(4, 6)]]


def problem(n_rows=4, size=7):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(n_rows, size, generator=generator)
    weights = torch.rand(n_rows, generator=generator)
    return -rows.mean(0), rows, weights


def bounds(weights, loss, rate, **options):
    return PolyakBounds(weights, torch.tensor(loss, dtype=torch.float64), rate, **options)


def by_hand(rows, weights, loss, rate, positions):
    """gamma = F / sum_i rate_i s_i^2 in float64."""
    push = weights.double().numpy() @ rows.double().numpy()
    rates = np.broadcast_to(np.asarray(rate, dtype=np.float64), push.shape)
    return loss / sum(rates[i] * push[i] ** 2 for i in positions)


@pytest.mark.parametrize("at_once", [False, True], ids=["step by step", "at once"])
@pytest.mark.parametrize("modules", [None, MODULES], ids=["whole", "modules"])
@pytest.mark.parametrize("rate", [0.1, torch.linspace(0.1, 0.7, 7)], ids=["one", "each"])
def test_bounds_are_those_of_the_formula(rate, modules, at_once, monkeypatch):
    monkeypatch.setattr(cone, "asks_once", lambda gradient, rows: at_once)
    gradient, rows, weights = problem()
    found = project(gradient, rows, modules=modules, memory_strength=bounds(weights, 2.0, rate))
    covered = range(7) if modules is None else (0, 1, 2, 4, 5)
    gamma = by_hand(rows, weights, 2.0, rate, covered)
    np.testing.assert_allclose(found.lower, gamma * weights.double(), rtol=1e-5)
    expected = project(gradient, rows, modules=modules, memory_strength=gamma * weights)
    torch.testing.assert_close(found.gradient, expected.gradient)
    assert found.push == pytest.approx(expected.push, rel=1e-5)


@given(rows_and_gradient(max_rows=5), st.floats(1e-3, 1e3), st.floats(1e-3, 10.0))
def test_the_push_brings_the_linear_model_of_the_loss_to_zero(problem, loss, rate):
    rows, gradient = map(torch.from_numpy, problem)
    weights = torch.ones(len(rows))
    push = rows.double().sum(0)
    if not 1e-6 < float(push.norm()) < 1e6:
        return
    given = project(gradient, rows, memory_strength=bounds(weights, loss, rate))
    step = rate * given.lower[0] * push
    assert float(loss - push @ step) == pytest.approx(0.0, abs=1e-4 * loss)


@pytest.mark.parametrize("scale", [8.0, 1e-3])
def test_a_loss_that_is_a_sum_gives_the_same_step_as_a_mean(scale):
    gradient, rows, weights = problem()
    mean = project(gradient, rows, memory_strength=bounds(weights, 2.0, 0.1))
    total = project(gradient, scale * rows, memory_strength=bounds(weights, scale * 2.0, 0.1))
    torch.testing.assert_close(mean.gradient, total.gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_not_positive_asks_for_no_push(loss):
    gradient, rows, weights = problem()
    found = project(gradient, rows, memory_strength=bounds(weights, loss, 0.1))
    assert torch.equal(found.gradient, project(gradient, rows).gradient)
    assert found.push == 0.0


def test_rows_that_are_zero_or_do_not_move_ask_for_no_push():
    gradient, rows, weights = problem()
    for memory, rate in ((0 * rows, 0.1), (rows, 0.0), (rows, -0.1)):
        found = project(gradient, memory, memory_strength=bounds(weights, 1.0, rate))
        assert not found.lower.any()


def test_rows_that_are_almost_zero_leave_a_finite_step():
    gradient, rows, weights = problem()
    found = project(gradient, 1e-18 * rows, memory_strength=bounds(weights, 1.0, 0.1))
    assert torch.isfinite(found.gradient).all()


def test_factor_and_maximum():
    gradient, rows, weights = problem()

    def lower(**options):
        given = bounds(weights, 2.0, 0.1, **options)
        return project(gradient, rows, memory_strength=given).lower

    one = lower()
    np.testing.assert_allclose(lower(factor=0.5), 0.5 * one)
    np.testing.assert_allclose(lower(maximum=0.25), 0.25 * weights.double())
    np.testing.assert_allclose(lower(maximum=1e9), one)


def test_the_push_is_the_length_of_what_the_strength_adds():
    gradient, rows, _ = problem()
    found = project(gradient, rows, memory_strength=0.3)
    expected = 0.3 * rows.double().sum(0).norm() / gradient.double().norm()
    assert found.push == pytest.approx(float(expected), rel=1e-6)
    assert project(gradient, rows).push == 0.0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(loss):
    gradient, rows, weights = problem()
    with pytest.raises(FloatingPointError, match=r"not finite|NaN or Inf"):
        project(gradient, rows, memory_strength=bounds(weights, loss, 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.0}, "^factor must be a finite number > 0"),
        ({"factor": "1"}, "^factor"),
        ({"floor": math.nan}, "^floor must be a finite number"),
        ({"maximum": -1.0}, "^maximum must be a finite number >= 0"),
        ({"maximum": "auto"}, "^maximum"),
        ({"maximum": math.inf}, "^maximum"),
        ({"maximum": LinearSchedule}, "^maximum"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PolyakStrength(**options)


def test_the_limit_is_a_number_or_a_schedule():
    assert PolyakStrength().limit(experience=3, iteration=9) == math.inf
    assert PolyakStrength(maximum=2).limit(experience=3, iteration=9) == 2.0
    ramp = PolyakStrength(maximum=LinearSchedule(0.0, 1.0, 3))
    assert [ramp.limit(experience=e, iteration=0) for e in range(3)] == [0.0, 0.5, 1.0]
    wrong = PolyakStrength(maximum=lambda experience, iteration: -1.0)
    with pytest.raises(ValueError, match=r"^maximum must be a finite number >= 0"):
        wrong.limit(experience=0, iteration=0)
