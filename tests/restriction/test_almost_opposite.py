"""Rows that are almost opposite: the ridge must not decide what room they leave."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.cone import nearest

from avalanche_mgem.restriction import PivotingSolver, QuadprogSolver, project, rounds
from avalanche_mgem.restriction.block import Block

LONG = 5_000  # columns, more than are multiplied in float64 where the numbers are float32
APART = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
SOLVERS = {
    "default": lambda: None,
    "quadprog": QuadprogSolver,
    "pivoting": lambda: PivotingSolver(quadprog_up_to=0),
}


def almost_opposite(seed, pairs, size, apart, dtype, copies=False):
    """(gradient, rows): each row of the first half has one against it that is so far from it."""
    random = np.random.default_rng(seed)
    one = random.standard_normal((pairs, size))
    other = -one * random.uniform(0.5, 2.0, (pairs, 1))
    other += apart * random.standard_normal((pairs, size))
    rows = np.concatenate([one, other, one[:1]] if copies else [one, other])
    gradient = random.standard_normal(size) - 0.3 * one.sum(0)
    return torch.tensor(gradient, dtype=dtype), torch.tensor(rows, dtype=dtype)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


cases = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(8, 60) | st.just(LONG),
    st.sampled_from(APART),
    st.sampled_from([torch.float64, torch.float32]),
    st.booleans(),
)


@pytest.mark.parametrize("solver", SOLVERS)
@given(cases, st.sampled_from([0.0, 0.01, 0.3]))
@settings(max_examples=60, deadline=None)
def test_the_conditions_of_an_optimum_hold(solver, case, strength):
    gradient, rows = almost_opposite(*case)
    found = project(gradient, rows, memory_strength=strength, solver=SOLVERS[solver]())
    if not found.violated:
        return
    z, a, v = (x.double().numpy() for x in (found.gradient, rows, found.dual[0]))
    lengths = np.linalg.norm(a, axis=1)
    room = 1e-6 * (float(gradient.norm()) + strength * lengths.sum())
    slope = a @ z / lengths
    assert (v >= strength).all()
    assert (slope >= -room).all()
    rise = (v - strength) * lengths
    assert (np.abs(slope[rise > 1e-9 * rise.max()]) <= room).all()


@pytest.mark.parametrize("solver", SOLVERS)
@given(cases, st.sampled_from([0.0, 0.01]))
@settings(max_examples=60, deadline=None)
def test_it_is_the_nearest_that_harms_no_row(solver, case, strength):
    gradient, rows = almost_opposite(*case)
    found = project(gradient, rows, memory_strength=strength, solver=SOLVERS[solver]())
    if not found.violated:
        return
    g, a = gradient.double().numpy(), rows.double().numpy()
    lower = np.full(len(a), strength)
    away = np.linalg.norm(found.gradient.double().numpy() - nearest(g, a, lower))
    # What the rounding of the Gram matrix, some K * 1e-14, does where rows leave so little room.
    values = np.linalg.svd(unit(a), compute_uv=False)
    least = values[values > 1e-7].min() ** 2
    push = np.linalg.norm(g) + np.linalg.norm(lower @ a) + strength * np.linalg.norm(a)
    assert away <= (2e-5 + 1e-13 * len(a) / least) * push


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [60, LONG])
@pytest.mark.parametrize("apart", [1e-3, 1e-4])
def test_the_ridge_would_be_felt(apart, size, dtype, monkeypatch):
    """The same with the ridge left in: else the tests above say nothing."""
    worst = {}
    for felt in (True, False):
        if not felt:
            monkeypatch.setattr(rounds, "_FELT", np.inf)
            monkeypatch.setattr(rounds, "_EDGE", -np.inf)
        away = []
        for seed in range(5):
            gradient, rows = almost_opposite(seed, 2, size, apart, dtype)
            g, a = gradient.double().numpy(), rows.double().numpy()
            z = project(gradient, rows).gradient.double().numpy()
            away.append(np.linalg.norm(z - nearest(g, a, np.zeros(4))) / np.linalg.norm(g))
        worst[felt] = max(away)
    assert worst[True] < 3e-5
    assert worst[False] > 1e-3


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize(("n_rows", "size"), [(1, 200), (6, 40), (20, 200), (40, LONG)])
def test_rows_that_leave_room_are_solved_for_once(n_rows, size, strength, monkeypatch):
    """Memory gradients, as they are in training: no product is computed for it."""
    widened = []
    monkeypatch.setattr(Block, "widen", widened.append)
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(size, generator=generator)
    rows = torch.randn(n_rows, size, generator=generator) + 0.5 * common
    gradient = torch.randn(size, generator=generator) - 2.0 * common
    assert project(gradient, rows, memory_strength=strength).violated
    assert not widened


def test_a_ridge_that_was_asked_for_stays():
    """GEM's: an absolute one is part of the problem."""
    gradient, rows = almost_opposite(0, 2, 60, 1e-3, torch.float64)
    z, free = (project(gradient, rows, ridge=ridge).gradient for ridge in (1.0, "relative"))
    assert float((z - free).norm()) > 1e-3 * float(gradient.norm())
