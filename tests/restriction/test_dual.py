"""The dual solvers: optimality first, then agreement with a solver that tries everything."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nasty import rows_and_gradient
from reference.cone import kkt_excess, solve_dual

from avalanche_mgem.restriction import (
    DiagonalSolver,
    DualSolver,
    PivotingSolver,
    QuadprogSolver,
)

STRENGTHS = st.sampled_from([0.0, 0.1, 0.5, 10.0])


def regularised(rows):
    gram = rows @ rows.T
    return gram + 1e-7 * np.diag(np.diagonal(gram))


@given(rows_and_gradient(), STRENGTHS)
@settings(max_examples=400)
def test_exact_solution_is_optimal(problem, strength):
    rows, gradient = problem
    gram, dots = regularised(rows), rows @ gradient
    lower = np.full(len(rows), strength)
    v = QuadprogSolver()(gram, dots, lower)
    assert (v >= lower).all()
    assert kkt_excess(gram, dots, lower, v) < 1e-6


@given(rows_and_gradient(max_rows=5), STRENGTHS)
@settings(max_examples=200)
def test_exact_solver_finds_the_step_that_trying_everything_finds(problem, strength):
    rows, gradient = problem
    rows = rows[np.abs(rows).max(axis=1) > 0]
    if len(rows) == 0:
        return
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gradient = gradient / np.linalg.norm(gradient)
    gram, dots = regularised(rows), rows @ gradient
    lower = np.full(len(rows), strength)
    step = rows.T @ QuadprogSolver()(gram, dots, lower)
    expected = rows.T @ solve_dual(gram, dots, lower)
    assert np.linalg.norm(step - expected) <= 1e-6 * (1.0 + np.linalg.norm(expected))


@given(
    rows_and_gradient(), st.lists(st.sampled_from([1e-6, 0.1, 3.0, 1e6]), min_size=6, max_size=6)
)
def test_the_step_does_not_depend_on_the_length_of_a_row(problem, factors):
    rows, gradient = problem
    factors = np.array(factors[: len(rows)])[:, None]
    steps = []
    for scaled in (rows, rows * factors):
        gram, dots = regularised(scaled), scaled @ gradient
        v = QuadprogSolver()(gram, dots, np.zeros(len(scaled)))
        steps.append(scaled.T @ v)
    assert np.linalg.norm(steps[0] - steps[1]) <= 1e-5 * np.linalg.norm(gradient)


@given(rows_and_gradient(), STRENGTHS, st.sampled_from([1e-12, 1e-3, 1e3, 1e12]))
def test_scaling_gradient_and_strength_scales_the_solution(problem, strength, factor):
    rows, gradient = problem
    gram, dots, lower = regularised(rows), rows @ gradient, np.full(len(rows), strength)
    length = np.sqrt(np.diagonal(gram))
    v = QuadprogSolver()(gram, dots, lower) * length
    scaled = QuadprogSolver()(gram, dots * factor, lower * factor) * length / factor
    unit_dots = np.divide(dots, length, out=np.zeros_like(dots), where=length > 0)
    size = max(np.abs(unit_dots).max(), np.abs(v).max(), np.abs(scaled).max())
    assert np.abs(v - scaled).max() <= 1e-5 * size


def test_a_gram_matrix_that_is_not_positive_definite_is_solved_and_said():
    row = np.array([1.0, 2.0])
    gram = np.outer([1.0, 1.0], [1.0, 1.0]) * (row @ row) - 1e-15 * np.eye(2)
    with pytest.warns(RuntimeWarning, match="not positive definite; solved with a ridge"):
        v = QuadprogSolver()(gram, np.array([-1.0, -1.0]), np.zeros(2))
    assert v.sum() == pytest.approx(1.0 / (row @ row), rel=1e-3)


@given(rows_and_gradient(max_rows=1), STRENGTHS)
def test_one_row_needs_no_exact_solver(problem, strength):
    rows, gradient = problem
    gram, dots, lower = regularised(rows), rows @ gradient, np.array([strength])
    exact, diagonal = (s(gram, dots, lower) for s in (QuadprogSolver(), DiagonalSolver()))
    size = max(np.abs(gradient).max(), np.abs(diagonal * rows).max())
    assert np.abs((exact - diagonal) * rows).max() <= 1e-12 * size


@given(st.integers(0, 1000), STRENGTHS)
def test_orthogonal_rows_need_no_exact_solver(seed, strength):
    random = np.random.default_rng(seed)
    rows = np.linalg.qr(random.standard_normal((6, 4)))[0].T * random.uniform(0.1, 10, (4, 1))
    gram, dots, lower = rows @ rows.T, rows @ random.standard_normal(6), np.full(4, strength)
    exact, diagonal = (s(gram, dots, lower) for s in (QuadprogSolver(), DiagonalSolver()))
    assert np.abs(rows.T @ (exact - diagonal)).max() < 1e-9 * (1 + np.abs(exact).max())


@given(rows_and_gradient(), STRENGTHS)
@example((np.zeros((2, 3)), np.zeros(3)), 0.5)
def test_approximate_solution_is_its_formula(problem, strength):
    rows, gradient = problem
    gram, dots = rows @ rows.T, rows @ gradient
    v = DiagonalSolver()(gram, dots, np.full(len(rows), strength))
    for i, row in enumerate(rows):
        alone = -dots[i] / gram[i, i] if row.any() else strength
        assert v[i] == max(strength, alone)


@pytest.mark.parametrize(
    "solver",
    [QuadprogSolver(), PivotingSolver(), PivotingSolver(quadprog_up_to=0), DiagonalSolver()],
)
class TestEverySolver:
    def test_keeps_the_protocol(self, solver):
        assert isinstance(solver, DualSolver)

    @pytest.mark.parametrize("bad", ["gram", "dots", "lower"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_refuses_what_is_not_finite(self, solver, bad, value):
        problem = {"gram": np.eye(2), "dots": -np.ones(2), "lower": np.zeros(2)}
        problem[bad].flat[0] = value
        with pytest.raises(ValueError, match=f"{bad} must be finite"):
            solver(**problem)

    def test_does_not_change_its_input(self, solver):
        gram, dots, lower = np.eye(2) * 3, np.array([-1.0, 2.0]), np.array([0.1, 0.2])
        copies = gram.copy(), dots.copy(), lower.copy()
        solver(gram, dots, lower)
        for before, after in zip(copies, (gram, dots, lower), strict=True):
            np.testing.assert_array_equal(before, after)
