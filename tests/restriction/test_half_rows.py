"""Rows in bfloat16 beside a gradient in float32."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_mgem.restriction import DiagonalSolver, project
from avalanche_mgem.restriction.polyak import PolyakBounds

ROUNDING = 2.0**-8  # of bfloat16, relative
SIZES = [200, 9_001]  # multiplied in float64 throughout, and in float32 by runs


def problem(n_rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_rows, size, generator=generator)
    gradient = torch.randn(size, generator=generator) - 0.5 * rows.mean(0)
    return gradient, rows


@given(
    n_rows=st.integers(1, 30),
    size=st.sampled_from(SIZES),
    modules=st.integers(1, 3),
    strength=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_the_rounded_rows_are_not_harmed(n_rows, size, modules, strength, seed):
    gradient, rows = problem(n_rows, size, seed)
    half, edges = rows.bfloat16(), [size * i // modules for i in range(modules + 1)]
    parts = [[slice(a, b)] for a, b in pairwise(edges)]
    done = project(gradient, half, memory_strength=strength, modules=parts)
    assert done.gradient.dtype == torch.float32
    for (part,) in parts:
        a, z = half[:, part].double(), done.gradient[part].double()
        room = 1e-5 * a.norm(dim=1) * max(float(gradient[part].norm()), float(z.norm()))
        assert ((a @ z) >= -room).all()


@pytest.mark.parametrize("solver", [None, DiagonalSolver()])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_those_of_the_same_rows_in_float32(size, solver):
    gradient, rows = problem(12, size, 0)
    half = rows.bfloat16()
    for strength in (0.0, 0.3):
        own = project(gradient, half, memory_strength=strength, solver=solver)
        wide = project(gradient, half.float(), memory_strength=strength, solver=solver)
        torch.testing.assert_close(own.dots, wide.dots, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(own.gradient, wide.gradient, rtol=1e-5, atol=1e-5)
        assert own.relative_change == pytest.approx(wide.relative_change, rel=1e-5)


@given(n_rows=st.integers(1, 20), strength=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_rounding_moves_the_projection_by_little_more_than_itself(n_rows, strength, seed):
    """Of rows that are far from parallel; the projection on others turns on their last digits."""
    gradient, rows = problem(n_rows, 9_001, seed)
    exact = project(gradient, rows, memory_strength=strength)
    rounded = project(gradient, rows.bfloat16(), memory_strength=strength)
    assert bool(exact.violated) == bool(rounded.violated) or exact.dots.abs().min() < 1.0
    if exact.violated and rounded.violated:
        room = 2 * ROUNDING * (gradient.norm() + strength * rows.norm(dim=1).sum())
        assert (exact.gradient - rounded.gradient).norm() <= room


def test_other_pairs_of_dtypes_are_refused():
    gradient, rows = problem(2, 10, 0)
    for one, other in ((gradient.double(), rows.bfloat16()), (gradient, rows.half())):
        with pytest.raises(ValueError, match="or bfloat16 beside float32"):
            project(one, other)


def test_what_is_not_finite_is_an_error():
    gradient, rows = problem(2, 10, 0)
    rows[1, 3] = torch.inf
    with pytest.raises(FloatingPointError, match="a memory row"):
        project(gradient, rows.bfloat16())


def test_polyaks_strength_is_that_of_the_same_rows_in_float32():
    gradient, rows = problem(5, 9_001, 0)
    half = rows.bfloat16()
    bounds = PolyakBounds(torch.full((5,), 0.2), torch.tensor(1.5), 0.1)
    own, wide = (project(gradient, a, memory_strength=bounds) for a in (half, half.float()))
    torch.testing.assert_close(own.dual, wide.dual, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(own.gradient, wide.gradient, rtol=1e-5, atol=1e-5)
