"""Solvers of the dual problem: how strongly each memory row pushes the gradient.

    v* = argmin_v  1/2 v'Gv + d'v   subject to   v >= lower

with G = AA' the Gram matrix of the K memory rows A (its ridge already added), d = Ag their dot
products with the gradient, and `lower` the memory strength (GEM, arXiv 1706.08840, eq. 11, where
the published code bounds v by gamma). The problem is K x K however long the gradients are. The
default solver, for many rows, is in pivoting; it falls back on QuadprogSolver here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import quadprog
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Tried in turn on the Gram matrix of unit rows, where 1 is the length of a row.
_RIDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)


@runtime_checkable
class DualSolver(Protocol):
    """A callable that solves the dual problem, exactly or not.

    A solver with a true attribute `diagonal_only` is given a matrix whose off-diagonal is zero,
    which spares the products between the rows. A solver with a true attribute `exact` finds the
    minimum to rounding: an exact solver may be given only the rows that can matter, chosen in
    rounds, instead of the whole Gram matrix. An integer attribute `retries`, where there is one,
    counts the solves that needed a larger ridge than the matrix came with.
    """

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K] for gram [K, K], dots [K] and lower [K], all float64."""
        ...


@dataclass(frozen=True)
class LiveProblem:
    """A dual problem whose diagonal is positive, and the lengths that make it one of unit rows.

    Args:
        gram: G, [K, K].
        dots: d, [K].
        lower: lower bounds of v, [K].
        length: of the rows, sqrt(G_ii) > 0, [K].
    """

    gram: Array
    dots: Array
    lower: Array
    length: Array

    def size(self) -> float:
        """Return the largest of |d_i| / length_i and lower_i length_i: of what unit rows are given.

        Zero means that v is zero.
        """
        wanted = np.abs(self.dots / self.length).max(initial=0.0)
        return float(max(wanted, np.abs(self.lower * self.length).max(initial=0.0)))

    def unit_gram(self) -> Array:
        """Return G_ij / (length_i length_j), [K, K]."""
        return self.gram / self.length[:, None] / self.length


class QuadprogSolver:
    """The exact solver: Goldfarb and Idnani's active-set method, by the package quadprog.

    The rows are scaled to unit length first, so rows of any length (1e-15 to 1e15) get the same
    care. A Gram matrix that is not positive definite to machine precision is solved with the
    smallest ridge that makes it so; `retries` counts these solves, and a RuntimeWarning tells of
    the first.
    """

    exact = True
    retries: int = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"  # without `retries`, which is no setting

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K]; rows whose diagonal is zero keep their lower bound.

        Raises:
            ValueError: gram, dots or lower hold a number that is not finite.
        """
        require_finite(gram=gram, dots=dots, lower=lower)
        return solve_live(gram, dots, lower, self.solve)

    def solve(self, problem: LiveProblem) -> Array:
        """Return v [K] for a problem of finite numbers; it may be below `lower` by rounding."""
        size = problem.size()
        if size == 0.0:
            return problem.lower
        unit_dots = problem.dots / problem.length / size
        unit_lower = problem.lower * problem.length / size
        return self._solve_unit(problem.unit_gram(), unit_dots, unit_lower) * size / problem.length

    def _solve_unit(self, gram: Array, dots: Array, lower: Array) -> Array:
        identity = np.eye(len(dots))
        for ridge in _RIDGES:
            try:
                solved: Array = quadprog.solve_qp(gram + ridge * identity, -dots, identity, lower)[
                    0
                ]
            except ValueError:  # quadprog's word for a matrix that is not positive definite
                continue
            if np.isfinite(solved).all():
                self._count(ridge)
                return solved
        raise RuntimeError(f"no ridge up to {_RIDGES[-1]:g} made the Gram matrix positive definite")

    def _count(self, ridge: float) -> None:
        if ridge == 0.0:
            return
        self.retries += 1
        if self.retries == 1:
            warnings.warn(
                f"the Gram matrix of the memory rows is not positive definite; solved with a ridge "
                f"of {ridge:g} times the squared length of each row (said once; `retries` counts)",
                RuntimeWarning,
                stacklevel=6,
            )


class DiagonalSolver:
    """The approximate solver of the mGEM paper: every row for itself, as if they were orthogonal.

    v_s = max(lower_s, -d_s / G_ss) (arXiv 2410.00868, "diagonal" Gram). Exact for one row or
    orthogonal rows. Rows that point the same way push several times for the same reason, and the
    step overshoots. Rows that oppose each other are not weighed against each other: the push of one
    may leave another violated, also one that the gradient did not violate.
    """

    diagonal_only = True

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K]; rows whose diagonal is zero keep their lower bound.

        Raises:
            ValueError: gram, dots or lower hold a number that is not finite.
        """
        require_finite(gram=gram, dots=dots, lower=lower)
        diagonal = np.diagonal(gram)
        live = diagonal > 0.0
        wanted = np.divide(-dots, diagonal, out=np.array(lower, dtype=np.float64), where=live)
        return np.maximum(wanted, lower)


def require_finite(**arrays: Array) -> None:
    """Raise a ValueError that names the first array with a number that is not finite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {array}")


def solve_live(
    gram: Array, dots: Array, lower: Array, solve: Callable[[LiveProblem], Array]
) -> Array:
    """Return v [K], at least `lower`: from `solve` where the diagonal is positive, else `lower`."""
    length = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    if length.all():
        return np.maximum(solve(LiveProblem(gram, dots, lower, length)), lower)
    solution = np.array(lower, dtype=np.float64)
    live = np.flatnonzero(length)
    part = LiveProblem(gram[np.ix_(live, live)], dots[live], lower[live], length[live])
    solution[live] = np.maximum(solve(part), lower[live])
    return solution
