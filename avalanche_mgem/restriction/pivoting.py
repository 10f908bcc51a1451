"""The exact dual problem by block principal pivoting: many rows change sides at once.

    v* = argmin_v  1/2 v'Gv + d'v   subject to   v >= lower

In u = v - lower >= 0 and c = d + G lower, the optimum is where the derivative w = Gu + c >= 0 and
u_i w_i = 0. Rows are kept on two sides: passive ones have w = 0, the others u = 0. The equations
of the passive rows are solved, and the rows whose u or w came out negative change sides (Portugal,
Judice, Vicente 1994; as described by Kim & Park, SIAM J. Sci. Comput. 2011). Few factorisations
are needed however many rows there are, and none at all when v = lower is the answer, near which
the answer is when the memory strength is not zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.restriction.dual import (
    Array,
    LiveProblem,
    QuadprogSolver,
    require_finite,
    solve_live,
)

Mask = NDArray[np.bool_]

# Block exchanges that may fail to bring fewer wrong rows than ever before the backup rule steps in.
_CHANCES = 3
# What a sum of products of unit rows can be wrong by, relative to the sum of their sizes.
_NOISE = 16 * np.finfo(np.float64).eps
# The equations of the passive rows are solved to this many times the noise, or not at all.
_SLACK = 16
# A solution this many times larger than what it answers tells of a matrix that is singular.
_LARGEST = 1e9
# Measured, one thread: problems at once are quicker than one by one up to this many rows, and from
# this many problems on.
_BATCH_ROWS = 32
_BATCH_PROBLEMS = 4
# One that takes longer than this keeps the batch waiting, and is better solved alone.
_BATCH_EXCHANGES = 20


class PivotingSolver:
    """The exact solver for many rows: block principal pivoting, with quadprog to fall back on.

    The optimum is the one that QuadprogSolver finds, to rounding: on 100 rows 30 times sooner, on
    1,000 rows 200 times. Where no optimum is reached that satisfies its conditions to rounding
    (the Gram matrix is not positive definite to machine precision, say), quadprog solves the same
    problem, with a ridge where it takes one; `retries` counts these ridges and a RuntimeWarning
    tells of the first.

    Args:
        quadprog_up_to: problems with this many rows or fewer that v = lower does not solve go to
            quadprog, which is quicker there.

    Raises:
        ValueError: quadprog_up_to is no whole number >= 0.
    """

    exact = True

    def __init__(self, *, quadprog_up_to: int = 16) -> None:
        self.quadprog_up_to = positive_int("quadprog_up_to", quadprog_up_to, minimum=0)
        self._quadprog = QuadprogSolver()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(quadprog_up_to={self.quadprog_up_to})"

    @property
    def retries(self) -> int:
        """How many solves so far needed a larger ridge than their matrix came with."""
        return self._quadprog.retries

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K]; rows whose diagonal is zero keep their lower bound.

        Raises:
            ValueError: gram, dots or lower hold a number that is not finite.
        """
        require_finite(gram=gram, dots=dots, lower=lower)
        return solve_live(gram, dots, lower, self._solve)

    def solve_many(self, grams: Array, dots: Array, lower: Array) -> Array:
        """Return v [M, K] of M problems that have nothing to do with each other.

        Args:
            grams: [M, K, K].
            dots: [M, K].
            lower: [M, K], or [K] for all alike.

        Raises:
            ValueError: grams, dots or lower hold a number that is not finite.
        """
        require_finite(grams=grams, dots=dots, lower=lower)
        solution = np.array(np.broadcast_to(lower, dots.shape), dtype=np.float64)
        derivative = dots + (grams @ solution[:, :, None])[:, :, 0]
        live = (np.diagonal(grams, axis1=1, axis2=2) > 0.0).all(axis=1)
        moving = np.flatnonzero(live & (derivative < 0.0).any(axis=1))
        left = np.append(moving, np.flatnonzero(~live))
        if dots.shape[1] <= _BATCH_ROWS and len(moving) >= _BATCH_PROBLEMS:
            steps, solved = _pivot_together(
                grams[moving], dots[moving], solution[moving], derivative[moving]
            )
            solution[moving[solved]] += steps[solved]
            left = np.delete(left, np.flatnonzero(solved))
        for index in left:
            problem = grams[index], dots[index], solution[index]
            solution[index] = solve_live(*problem, self._solve)
        return solution

    def _solve(self, problem: LiveProblem) -> Array:
        derivative = problem.dots + problem.gram @ problem.lower
        if not (derivative < 0.0).any():
            return problem.lower
        if len(derivative) == 1:
            alone: Array = problem.lower - derivative / problem.gram[0]
            return alone
        if len(derivative) > self.quadprog_up_to:
            step = _pivot(problem, derivative)
            if step is not None:
                return problem.lower + step
        return self._quadprog.solve(problem)


class _Exchange:
    """Which of the wrong rows change sides; finite, as the number of wrong rows must fall.

    All of them, until that has not brought fewer wrong rows than ever `_CHANCES` times; then only
    the last, a rule that cannot cycle (Murty), until there are fewer than ever.
    """

    def __init__(self) -> None:
        self._fewest: float = np.inf
        self._chances = _CHANCES

    def of(self, wrong: Mask) -> Mask:
        count = int(np.count_nonzero(wrong))
        if count < self._fewest:
            self._fewest, self._chances = count, _CHANCES
            return wrong
        if self._chances > 0:
            self._chances -= 1
            return wrong
        last = np.zeros_like(wrong)
        last[np.flatnonzero(wrong)[-1]] = True
        return last


def _pivot(problem: LiveProblem, derivative: Array) -> Array | None:
    """Return u [K], or None where no optimum was found; `derivative` is c.

    The matrix is used as it is: a Cholesky factorisation and the products with a row err in
    proportion to the lengths of the rows, so only the tolerances need to know these.
    """
    length = problem.length
    size = _size(problem.dots / length, problem.lower * length)
    passive, exchange = derivative < 0.0, _Exchange()
    # After so many factorisations quadprog would have been quicker.
    for _ in range(10 + len(length) // 4):
        at = np.flatnonzero(passive)
        equations = _passive_rows(problem.gram, derivative, at)
        if equations is None:
            return None
        step, slope = equations[0], equations[1] / length
        total = np.abs(step * length[at]).sum()
        wrong = slope < -_NOISE * (size + total)
        wrong[at] = step < 0.0
        if not wrong.any():
            full = np.zeros_like(derivative)
            full[at] = step
            return full if _trusted(np.abs(slope[at]).max(initial=0.0), total, size) else None
        passive ^= exchange.of(wrong)
    return None


def _passive_rows(
    gram: Array, derivative: Array, at: NDArray[np.intp]
) -> tuple[Array, Array] | None:
    """Return u [P] of the P passive rows `at`, and w [K]; None if their block is not definite."""
    if len(at) == 0:  # LAPACK refuses an empty matrix
        return derivative[at], derivative
    rows = gram[at]
    # Transposed, the block is in LAPACK's order and needs no copy.
    _, step, failed = dposv(rows.take(at, axis=1).T, -derivative[at], lower=1, overwrite_a=1)
    return None if failed else (step, derivative + step @ rows)


def _pivot_together(
    gram: Array, dots: Array, lower: Array, derivative: Array
) -> tuple[Array, Mask]:
    """Return u [M, K], and which of the M problems were solved, [M].

    Rows that are not passive get the equation u = 0, so that all systems are of one size. What
    the block exchanges alone do not solve is left.
    """
    length = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    size = _size(dots / length, lower * length)
    gram, derivative = gram / length[:, :, None] / length[:, None, :], derivative / length
    steps, solved = np.zeros_like(derivative), np.zeros(len(size), dtype=np.bool_)
    left, passive = np.arange(len(size)), derivative < 0.0
    for _ in range(_BATCH_EXCHANGES):
        try:
            step, slope = _passive_rows_together(gram, derivative, passive)
        except np.linalg.LinAlgError:  # of one is enough
            break
        total = np.abs(step).sum(axis=1)
        wrong = np.where(passive, step < 0.0, slope < -_NOISE * (size + total)[:, None])
        go = wrong.any(axis=1)
        good = ~go & _trusted(np.abs(slope * passive).max(axis=1), total, size)
        steps[left[good]], solved[left[good]] = step[good], True
        if not go.any():
            break
        left, gram, derivative, size = left[go], gram[go], derivative[go], size[go]
        passive = (passive ^ wrong)[go]
    return steps / length, solved


def _passive_rows_together(gram: Array, derivative: Array, passive: Mask) -> tuple[Array, Array]:
    """Return u and w, both [M, K]; u is zero where a row is not passive."""
    both = passive[:, :, None] & passive[:, None, :]
    system = np.where(both, gram, np.eye(derivative.shape[1]))
    step = np.linalg.solve(system, np.where(passive, -derivative, 0.0)[:, :, None])
    return step[:, :, 0], (gram @ step)[:, :, 0] + derivative


def _size(dots: Array, lower: Array) -> Array:
    """Return [...]: how large the sums in c = d + G lower can be, for unit rows [..., K]."""
    return np.asarray(np.abs(dots).max(axis=-1) + lower.sum(axis=-1))


def _trusted(residual: Array, total: Array, size: Array) -> Mask:
    """Whether the passive equations hold to rounding and tell of the data, not of rounding.

    Args:
        residual: the largest |w_i| of the passive rows, for unit rows, [...].
        total: the sum of u, [...].
        size: of the data, from `_size`, [...].
    """
    exact = residual <= _SLACK * _NOISE * (size + total)
    return np.asarray(exact & (total <= _LARGEST * size))
