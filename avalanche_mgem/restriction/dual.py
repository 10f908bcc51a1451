"""Solvers of the dual problem: how strongly each memory row pushes the gradient.

    v* = argmin_v  1/2 v'Gv + d'v   subject to   v >= lower

with G = AA' the Gram matrix of the K memory rows A (its ridge already added), d = Ag their dot
products with the gradient, and `lower` the memory strength (GEM, arXiv 1706.08840, eq. 11, where
the published code bounds v by gamma). The problem is K x K however long the gradients are.
"""

from __future__ import annotations

import warnings
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
    which spares the products between the rows.
    """

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K] for gram [K, K], dots [K] and lower [K], all float64."""
        ...


class QuadprogSolver:
    """The exact solver: Goldfarb and Idnani's active-set method, by the package quadprog.

    The rows are scaled to unit length first, so rows of any length (1e-15 to 1e15) get the same
    care. A Gram matrix that is not positive definite to machine precision is solved with the
    smallest ridge that makes it so, and a RuntimeWarning says so.
    """

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K]; rows whose diagonal is zero keep their lower bound.

        Raises:
            ValueError: gram, dots or lower hold a number that is not finite.
        """
        _require_finite(gram=gram, dots=dots, lower=lower)
        solution = np.array(lower, dtype=np.float64)
        length = np.sqrt(np.clip(np.diagonal(gram), 0.0, None))
        live = np.flatnonzero(length > 0.0)
        unit_dots, unit_lower = dots[live] / length[live], lower[live] * length[live]
        size = max(np.abs(unit_dots).max(initial=0.0), np.abs(unit_lower).max(initial=0.0))
        if size == 0.0:
            return solution
        unit_gram = gram[np.ix_(live, live)] / np.outer(length[live], length[live])
        unit = _solve_unit(unit_gram, unit_dots / size, unit_lower / size)
        solution[live] = np.maximum(unit * (size / length[live]), lower[live])
        return solution


class DiagonalSolver:
    """The approximate solver of the mGEM paper: every row for itself, as if they were orthogonal.

    v_s = max(lower_s, -d_s / G_ss). Exact for one row or orthogonal rows; correlated rows push
    several times for the same reason, so the step overshoots (arXiv 2410.00868, "diagonal" Gram).
    """

    diagonal_only = True

    def __call__(self, gram: Array, dots: Array, lower: Array) -> Array:
        """Return v [K]; rows whose diagonal is zero keep their lower bound.

        Raises:
            ValueError: gram, dots or lower hold a number that is not finite.
        """
        _require_finite(gram=gram, dots=dots, lower=lower)
        diagonal = np.diagonal(gram)
        live = diagonal > 0.0
        wanted = np.divide(-dots, diagonal, out=np.array(lower, dtype=np.float64), where=live)
        return np.maximum(wanted, lower)


def _require_finite(**arrays: Array) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {array}")


def _solve_unit(gram: Array, dots: Array, lower: Array) -> Array:
    identity = np.eye(len(dots))
    for ridge in _RIDGES:
        try:
            solution: Array = quadprog.solve_qp(gram + ridge * identity, -dots, identity, lower)[0]
        except ValueError:  # quadprog's word for a matrix that is not positive definite
            continue
        if ridge > 0.0:
            _warn_of_ridge(ridge)
        return solution
    raise RuntimeError(f"no ridge up to {_RIDGES[-1]:g} made the Gram matrix positive definite")


def _warn_of_ridge(ridge: float) -> None:
    warnings.warn(
        f"the Gram matrix of the memory rows is not positive definite; solved with a ridge of "
        f"{ridge:g} times the squared length of each row",
        RuntimeWarning,
        stacklevel=4,
    )
