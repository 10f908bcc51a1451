"""Block principal pivoting: optimality, then agreement with quadprog, on every size."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import quadprog
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty import SCALES, rows_and_gradient
from reference.cone import kkt_excess

from avalanche_mgem.restriction import DualSolver, PivotingSolver, QuadprogSolver

STRENGTHS = st.sampled_from([0.0, 0.1, 0.5, 10.0])
SEEDS = st.integers(0, 2**32 - 1)
KINDS = ["plain", "groups", "parallel", "opposed", "rank-deficient", "scales", "zero rows"]
# Sends nothing to quadprog that pivoting can solve.
pivoting = PivotingSolver(quadprog_up_to=0)


def regularised(rows):
    gram = rows @ rows.T
    return gram + 1e-7 * np.diag(np.diagonal(gram))


def many_rows(seed, kind, n_rows, size):
    """Memory rows [K, P] and a gradient [P] as in the long runs: groups of correlated rows."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n_rows, size))
    if kind == "groups":
        rows = np.repeat(rows[: -(-n_rows // 8)], 8, axis=0)[:n_rows] + 0.5 * rows
    elif kind == "parallel":
        rows = rows[:1] * random.uniform(0.5, 2.0, (n_rows, 1))
    elif kind == "opposed":
        rows = rows[:1] * random.choice([-1.0, 1.0], (n_rows, 1))
    elif kind == "rank-deficient":
        rows = random.standard_normal((n_rows, 5)) @ random.standard_normal((5, size))
    elif kind == "scales":
        rows *= random.choice(SCALES, (n_rows, 1))
    elif kind == "zero rows":
        rows[random.random(n_rows) < 0.3] = 0.0
    return rows, random.standard_normal(size)


def unit_strength(rows, strength):
    """Lower bounds under which every row pushes by the same length."""
    length = np.linalg.norm(rows, axis=1)
    return np.divide(strength, length, out=np.full(len(rows), strength), where=length > 0)


def assert_same_step(rows, gradient, one, other, lower):
    size = np.linalg.norm(gradient) + np.linalg.norm(rows, axis=1) @ lower
    assert np.linalg.norm(rows.T @ (one - other)) <= 1e-9 * size


def must_not_be_called(*args):
    raise AssertionError("quadprog was called")


def cycling_problem():
    """A Gram matrix [3, 3] and dots [3] on which block exchanges alone go round for ever."""
    rows = np.array([[2.0, 3.0], [3.0, 2.0], [-1.0, -3.0]])
    return rows @ rows.T + 0.1 * np.eye(3), np.array([-2.0, -1.0, 2.0])


@given(rows_and_gradient(), STRENGTHS)
@settings(max_examples=400)
def test_the_solution_is_optimal(problem, strength):
    rows, gradient = problem
    gram, dots, lower = regularised(rows), rows @ gradient, np.full(len(rows), strength)
    v = pivoting(gram, dots, lower)
    assert (v >= lower).all()
    assert kkt_excess(gram, dots, lower, v) < 1e-9


@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 200), st.integers(5, 300), STRENGTHS)
@settings(max_examples=150)
def test_the_step_is_that_of_quadprog(seed, kind, n_rows, size, strength):
    rows, gradient = many_rows(seed, kind, n_rows, size)
    gram, dots, lower = regularised(rows), rows @ gradient, unit_strength(rows, strength)
    v = pivoting(gram, dots, lower)
    assert (v >= lower).all()
    assert kkt_excess(gram, dots, lower, v) < 1e-9
    assert_same_step(rows, gradient, v, QuadprogSolver()(gram, dots, lower), lower)


@pytest.mark.slow
def test_a_thousand_rows(monkeypatch):
    rows, gradient = many_rows(0, "groups", 1000, 600)
    gram, dots, lower = regularised(rows), rows @ gradient, np.zeros(1000)
    expected = QuadprogSolver()(gram, dots, lower)
    monkeypatch.setattr(quadprog, "solve_qp", must_not_be_called)
    assert_same_step(rows, gradient, pivoting(gram, dots, lower), expected, lower)


@pytest.mark.parametrize("strength", [0.0, 0.0625, 0.5])
@pytest.mark.parametrize("n_rows", [40, 160])
def test_realistic_problems_need_no_quadprog(n_rows, strength, monkeypatch):
    monkeypatch.setattr(quadprog, "solve_qp", must_not_be_called)
    for seed in range(20):
        rows, gradient = many_rows(seed, "groups", n_rows, 1000)
        gram, dots, lower = regularised(rows), rows @ gradient, np.full(n_rows, strength)
        assert kkt_excess(gram, dots, lower, PivotingSolver()(gram, dots, lower)) < 1e-12


def test_the_lower_bounds_are_kept_exactly_where_they_are_the_answer():
    lower = np.array([0.1, 1 / 3, 7e-12])
    gram = np.eye(3) * [[3.0], [1e20], [1e-20]]
    np.testing.assert_array_equal(pivoting(gram, np.zeros(3), lower), lower)
    np.testing.assert_array_equal(pivoting(gram, -gram @ lower, lower), lower)


def test_rows_of_length_zero_keep_their_lower_bound():
    gram = np.diag([4.0, 0.0, 1.0])
    v = pivoting(gram, np.array([-2.0, -1.0, -3.0]), np.array([0.0, 0.7, 0.1]))
    np.testing.assert_allclose(v, [0.5, 0.7, 3.0], rtol=1e-14)


def test_no_rows_have_no_dual_variables():
    for solver in (pivoting, QuadprogSolver()):
        assert solver(np.zeros((0, 0)), np.zeros(0), np.zeros(0)).shape == (0,)


def test_a_cycle_of_block_exchanges_is_left(monkeypatch):
    gram, dots = cycling_problem()
    assert not block_exchanges_end(gram, dots)
    expected = QuadprogSolver()(gram, dots, np.zeros(3))
    monkeypatch.setattr(quadprog, "solve_qp", must_not_be_called)
    np.testing.assert_allclose(pivoting(gram, dots, np.zeros(3)), expected, rtol=0, atol=1e-9)


def block_exchanges_end(gram, dots):
    passive = dots < 0
    for _ in range(100):
        u, block = np.zeros(3), np.ix_(passive, passive)
        u[passive] = np.linalg.solve(gram[block], -dots[passive])
        wrong = np.where(passive, u < 0, gram @ u + dots < -1e-9)
        if not wrong.any():
            return True
        passive = passive ^ wrong
    return False


@pytest.mark.parametrize(("n_rows", "size"), [(5, 2), (30, 10), (100, 35), (160, 60)])
def test_it_ends_where_many_solutions_are_almost_as_good(n_rows, size):
    for seed, strength in itertools.product(range(5), [0.0, 0.1]):
        rows, gradient = many_rows(seed, "groups", n_rows, size)
        gram, dots, lower = regularised(rows), rows @ gradient, np.full(n_rows, strength)
        assert kkt_excess(gram, dots, lower, pivoting(gram, dots, lower)) < 1e-9


@given(st.integers(1, 12), st.integers(1, 6), SEEDS)
def test_ties_are_broken(n_rows, size, seed):
    random = np.random.default_rng(seed)
    rows = random.integers(-1, 2, (n_rows, size)).astype(np.float64)
    gradient = random.integers(-1, 2, size).astype(np.float64)
    gram, dots, lower = regularised(rows), rows @ gradient, random.integers(0, 2, n_rows) * 1.0
    v = pivoting(gram, dots, lower)
    assert kkt_excess(gram, dots, lower, v) < 1e-9
    assert_same_step(rows, gradient, v, QuadprogSolver()(gram, dots, lower), lower)


class TestSolveMany:
    @pytest.mark.parametrize("n_problems", [1, 2, 8, 62])
    @pytest.mark.parametrize(("n_rows", "size"), [(1, 5), (5, 30), (20, 30), (20, 7), (50, 80)])
    @pytest.mark.parametrize("strength", [0.0, 0.1])
    def test_is_one_by_one(self, n_problems, n_rows, size, strength):
        problems = [many_rows(i, KINDS[i % len(KINDS)], n_rows, size) for i in range(n_problems)]
        grams = np.stack([regularised(rows) for rows, _ in problems])
        dots = np.stack([rows @ gradient for rows, gradient in problems])
        lower = np.stack([unit_strength(rows, strength) for rows, _ in problems])
        together = PivotingSolver().solve_many(grams, dots, lower)
        assert (together >= lower).all()
        for i, (rows, gradient) in enumerate(problems):
            alone = PivotingSolver()(grams[i], dots[i], lower[i])
            assert_same_step(rows, gradient, together[i], alone, lower[i])

    def test_one_lower_bound_for_all(self):
        grams, dots = np.stack([np.eye(2)] * 6), np.linspace(-1, 1, 12).reshape(6, 2)
        lower = np.array([0.0, 0.5])
        expected = np.maximum(-dots, lower)
        np.testing.assert_allclose(PivotingSolver().solve_many(grams, dots, lower), expected)

    def test_problems_that_are_singular_or_cycle_do_not_spoil_the_others(self):
        gram, dots = cycling_problem()
        grams = np.stack([gram, np.ones((3, 3)), np.zeros((3, 3)), np.eye(3), gram, np.eye(3)])
        dots = np.stack([dots, -np.ones(3), -np.ones(3), -np.ones(3), -dots, np.ones(3)])
        with pytest.warns(RuntimeWarning, match="not positive definite"):
            together = PivotingSolver().solve_many(grams, dots, np.zeros(3))
        assert together[1].sum() == pytest.approx(1.0)
        for i in (0, 2, 3, 4, 5):
            alone = PivotingSolver()(grams[i], dots[i], np.zeros(3))
            np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-9)

    def test_refuses_what_is_not_finite(self):
        grams, dots = np.stack([np.eye(2)] * 3), np.zeros((3, 2))
        grams[1, 0, 1] = np.nan
        with pytest.raises(ValueError, match="grams must be finite"):
            PivotingSolver().solve_many(grams, dots, np.zeros(2))

    def test_does_not_change_its_input(self):
        grams, dots, lower = np.stack([np.eye(2) * 3] * 6), -np.ones((6, 2)), np.zeros(2)
        copies = grams.copy(), dots.copy(), lower.copy()
        PivotingSolver().solve_many(grams, dots, lower)
        for before, after in zip(copies, (grams, dots, lower), strict=True):
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("make", [QuadprogSolver, PivotingSolver, lambda: copy.copy(pivoting)])
class TestExactSolvers:
    singular = (np.ones((2, 2)) - 1e-15 * np.eye(2), -np.ones(2), np.zeros(2))

    def test_are_exact_solvers(self, make):
        assert isinstance(make(), DualSolver)
        assert make().exact is True

    def test_count_their_ridges_and_warn_once(self, make):
        solver = copy.deepcopy(make())
        solver(np.eye(2), -np.ones(2), np.zeros(2))
        assert solver.retries == 0
        with pytest.warns(RuntimeWarning, match="solved with a ridge of 1e-12") as said:
            solutions = [solver(*self.singular) for _ in range(3)]
        assert np.sum(solutions, axis=1) == pytest.approx(1.0)
        assert len(said) == 1
        assert solver.retries == 3

    def test_are_copied_and_pickled_with_their_count(self, make):
        solver = copy.deepcopy(make())
        with pytest.warns(RuntimeWarning, match="ridge"):
            solver(*self.singular)
        for twin in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
            twin(*self.singular)
            assert (twin.retries, solver.retries) == (2, 1)

    def test_are_told_by_their_settings_alone(self, make):
        solver = copy.deepcopy(make())
        before = repr(solver)
        with pytest.warns(RuntimeWarning, match="ridge"):
            solver(*self.singular)
        assert repr(solver) == before
