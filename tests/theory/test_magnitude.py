"""Magnitudes between frozen and initialized: the ends, the simulation, and the best ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_mgem.theory import (
    Outcome,
    TwoTasks,
    frozen,
    initialized,
    optimal_magnitude,
    optimal_magnitudes,
    scaled,
    sequence_errors,
    simulate_sequence,
)

CHECK = {"n": 20, "p": 100, "p2": 60, "shared_norm": 1.0, "specific_norm": 2.0, "noise": 0.1}
GRID = [
    CHECK | {"distance": 1.0},
    CHECK | {"distance": 0.3, "noise": 0.5},
    {"n": 5, "p": 10, "p2": 30, "shared_norm": 2.0, "specific_norm": 1.0, "distance": 2.0},
    {"n": 10, "p": 4, "p2": 40, "shared_norm": 3.0, "specific_norm": 0.5, "distance": 1.0},
]


@st.composite
def settings(draw):
    """Any pair of tasks in the domain of frozen training."""
    n, p = draw(st.integers(1, 50)), draw(st.integers(1, 200))
    size = st.floats(0, 10, allow_subnormal=False)
    return {
        "n": n,
        "p": p,
        "p2": n + 2 + draw(st.integers(0, 100)),
        **{name: draw(size) for name in ("shared_norm", "specific_norm", "distance", "noise")},
        "cosine": draw(st.floats(-1, 1, allow_subnormal=False)),
    }


@given(settings())
def test_the_ends_are_frozen_and_initialized_training(setting):
    tasks = TwoTasks(**setting)
    for m, training in ((0, frozen), (1, initialized)):
        for value, expected in zip(scaled(tasks, m), training(tasks), strict=True):
            assert float(value) == pytest.approx(float(expected), rel=1e-7, abs=1e-7)


@given(settings(), st.floats(0, 1))
def test_no_magnitude_is_better_than_the_best(setting, m):
    tasks = TwoTasks(**setting)
    best = optimal_magnitude(tasks)
    assert 0 <= best <= 1

    def mean_error(magnitude):
        errors = scaled(tasks, magnitude)
        return float(errors.first + errors.second)

    assert mean_error(best) <= mean_error(m) * (1 + 1e-9) + 1e-9


def deviations(errors, found):
    """Simulated minus expected, in standard errors, of what is not NaN."""
    there = ~np.isnan(errors)
    assert np.array_equal(there, ~np.isnan(found.mean))
    return ((found.mean - errors) / found.standard_error)[there]


@pytest.mark.parametrize("kept", [False, True])
def test_closed_forms_hold_within_the_simulations_interval(kept):
    # As in test_two_task_simulation.py: about 60 numbers, the seeds are fixed.
    magnitudes, away = [1.0, 0.3, 0.8, 0.5], []
    for seed, setting in enumerate(GRID):
        tasks = TwoTasks(**setting)
        found = simulate_sequence(tasks, magnitudes, kept=kept, runs=1500, seed=seed)
        away.append(deviations(sequence_errors(tasks, magnitudes, kept=kept), found))
    away = np.concatenate(away)
    assert np.abs(away).max() < 3.3
    assert 0.7 < np.sqrt(np.mean(away**2)) < 1.3


@pytest.mark.parametrize("cosine", [0.0, -0.7])
def test_two_tasks_by_a_slow_and_obvious_reference(cosine):
    """One run at a time, by numpy's least squares: u goes half of its way, and q fits the rest."""
    setting = {"n": 6, "p": 12, "p2": 20, "shared_norm": 1.0, "specific_norm": 2.0}
    setting |= {"distance": 1.5, "noise": 0.3}
    random, m, errors = np.random.default_rng(0), 0.5, []
    u = np.full(12, 1 / np.sqrt(12))
    q1, step = np.zeros(20), np.zeros(20)
    q1[0], step[0], step[1] = 2.0, 1.5 * cosine, 1.5 * np.sqrt(1 - cosine**2)
    for _ in range(1200):
        learnt = np.zeros(32)
        for target, part in ((np.r_[u, q1], 1.0), (np.r_[u, q1 + step], m)):
            features = random.standard_normal((6, 32))
            y = features @ target + 0.3 * random.standard_normal(6)
            whole = np.linalg.lstsq(features, y - features @ learnt, rcond=None)[0]
            learnt[:12] += part * whole[:12]
            rest = y - features @ learnt
            # The smallest change of q that fits; of the first task the whole change is.
            own = np.linalg.lstsq(features[:, 12:], rest, rcond=None)[0] if part < 1 else whole[12:]
            learnt[12:] += own
        errors.append([np.sum((learnt - w) ** 2) for w in (np.r_[u, q1], np.r_[u, q1 + step])])
    errors, expected = np.array(errors), scaled(TwoTasks(**setting, cosine=cosine), m)
    for values, name in zip(errors.T, ("first", "second"), strict=True):
        standard_error = values.std(ddof=1) / np.sqrt(len(values))
        assert values.mean() == pytest.approx(
            float(getattr(expected, name)), abs=3 * standard_error
        )


def test_a_sequence_of_two_is_the_pair():
    tasks = TwoTasks(**GRID[0])
    errors, pair = sequence_errors(tasks, [1.0, 0.4]), scaled(tasks, 0.4)
    assert errors[0, 0] == pytest.approx(float(pair.before))
    assert errors[1].tolist() == pytest.approx([float(pair.first), float(pair.second)])
    assert np.isnan(errors[0, 1])
    assert isinstance(pair, Outcome)
    chosen = optimal_magnitudes(tasks, 2)
    assert chosen.tolist() == pytest.approx([1.0, float(optimal_magnitude(tasks))])


def test_scaled_steps_to_the_end_meet_it_at_both_ends_and_differ_between():
    tasks = TwoTasks(**GRID[0])
    for m in (0.0, 1.0):
        way, steps = (
            simulate_sequence(tasks, [1.0, m], how=how, runs=50) for how in ("way", "steps")
        )
        np.testing.assert_allclose(way.mean, steps.mean, rtol=1e-9)
    way, steps = (
        simulate_sequence(tasks, [1.0, 0.4], how=how, runs=50) for how in ("way", "steps")
    )
    assert not np.allclose(way.mean[1], steps.mean[1], rtol=1e-4)


def test_gradient_descent_with_scaled_steps_ends_where_the_simulation_says():
    """A slow reference of how="steps": many steps of descent on one draw of data."""
    from avalanche_mgem.theory.sequence_simulation import _changes

    tasks = TwoTasks(n=4, p=6, p2=8, shared_norm=1, specific_norm=1, distance=1)
    a, b = np.ones((1, 6)), np.linspace(-1, 1, 8)[None]
    moved, own = _changes(tasks, a, b, 0.3, "steps", np.random.default_rng(5))
    again = np.random.default_rng(5)
    x, z = again.standard_normal((4, 6)), again.standard_normal((4, 8))
    u, q = np.zeros(6), np.zeros(8)
    for _ in range(20_000):
        residual = x @ (u - a[0]) + z @ (q - b[0])
        u, q = u - 0.3 * 0.02 * x.T @ residual, q - 0.02 * z.T @ residual
    np.testing.assert_allclose(u, moved[0], atol=1e-6)
    np.testing.assert_allclose(q, own[0], atol=1e-6)


def test_the_best_magnitude_shrinks_with_the_number_of_tasks_where_heads_are_kept():
    """Between t^-0.5 and t^-1 here; with one head it does not: past tasks are lost anyway."""
    setting = {"n": 20, "p": 40, "p2": 60, "shared_norm": 3.0, "specific_norm": 1.0, "noise": 0.1}
    tasks = TwoTasks(**setting, distance=2.0)
    chosen = optimal_magnitudes(tasks, 40, kept=True)
    assert chosen[0] == 1.0
    assert np.all(np.diff(chosen[2:]) < 0)
    slope = np.log(chosen[39] / chosen[4]) / np.log(40 / 5)
    assert -1.0 < slope < -0.5
    assert optimal_magnitudes(tasks, 40)[-1] == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tasks: scaled(tasks, 1.1), "magnitude must be <= 1"),
        (lambda tasks: scaled(tasks, -0.1), "magnitude must be >= 0"),
        (lambda tasks: sequence_errors(tasks, [1, 2]), "magnitudes must be <= 1"),
        (lambda tasks: optimal_magnitudes(tasks, 0), "n_tasks must be a whole number >= 1"),
        (lambda tasks: simulate_sequence(tasks, [1], runs=1), "runs must be a whole number >= 2"),
        (lambda tasks: simulate_sequence(tasks, [1], how="far"), "how: unknown 'far'"),
        (lambda tasks: sequence_errors(tasks, []), "magnitudes must name at least one task"),
        (
            lambda _: scaled(TwoTasks(**CHECK | {"p2": 21, "distance": 1}), 0.5),
            r"p2 must be > n \+ 1",
        ),
        (
            lambda _: sequence_errors(TwoTasks(**CHECK | {"distance": [1, 2]}), [1]),
            r"tasks must be one pair, got an array of shape \(2,\)",
        ),
    ],
)
def test_what_is_outside_the_domain_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(TwoTasks(**GRID[0]))
