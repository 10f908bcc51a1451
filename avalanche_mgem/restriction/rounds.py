"""The projection of one module, from as little of its Gram matrix as will do.

Most rows of a memory stay at their bound: at an optimum they push no more than the memory strength
asks. So an exact solver is given the rows that a step would harm, and then, in rounds, those that
the answer so far would harm. A row that no round adds satisfies the optimality conditions of the
whole problem at its bound, so the answer is that of the whole problem; each round adds a row, so
there are K at most, and hardly ever more than two.

The relative ridge moves z by A'x with Gx = ridge v over the rows above their bound: by about 1e-7
of the push A'v, unless rows that are almost opposite leave them little room. Where it is more than
1e-5 of the push, the problem is solved once more, in float64, with a ridge as small as the rounding
of the Gram matrix. (A step of refinement with the first matrix would not do: it shortens the error
by ridge / (ridge + s^2), s^2 the smallest eigenvalue for unit rows, which is no help where s^2 is
below the ridge, and may have to change what is above its bound.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg.lapack import dposv, dpotrf
from torch import Tensor

from avalanche_mgem.restriction.block import Array, Block
from avalanche_mgem.restriction.dual import DualSolver

Ridge = float | Literal["relative"]

RELATIVE_RIDGE = 1e-7
# How far the ridge may move z, relative to the push, before it is taken away.
_FELT = 1e-5
# How near to its edge, relative to where it was, a row is on it for what the ridge lets pass.
_EDGE = 10 * RELATIVE_RIDGE
# What the Gram matrix of K unit rows in float64 is wrong by, divided by K.
_ROUNDING = 16 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class _Added:
    """What is added to the diagonal: a number, and a share of each entry."""

    absolute: float = 0.0
    relative: float = 0.0

    def to(self, squares: Array) -> Array:
        return self.absolute + self.relative * squares

    def part_of(self, diagonal: Array) -> Array:
        """What of a diagonal is the ridge."""
        return (self.absolute + self.relative * diagonal) / (1.0 + self.relative)


def restrict(
    block: Block, dots: Array, lower: Array, solver: DualSolver, ridge: Ridge, out: Tensor
) -> Array:
    """Project a module that has a violated row, into `out`.

    Args:
        block: the module's gradient and K rows.
        dots: <g_m, a_m>, [K], some of them negative.
        lower: bounds of v, [K].
        solver: given only what it needs: an exact one the rows that can matter, a diagonal one the
            squared lengths of the violated rows, any other the whole Gram matrix.
        ridge: added to the diagonal of the Gram matrix, absolute or "relative" to each entry; a
            diagonal solver gets none. Where a relative one is felt, an exact solver solves again
            with as good as none.
        out: z [P], of which the module's positions are written.

    Returns:
        v [K].
    """
    added = _Added(relative=RELATIVE_RIDGE) if ridge == "relative" else _Added(float(ridge))
    dual: Array
    if getattr(solver, "exact", False):
        dual, felt = _in_rounds(block, dots, lower, solver, added, out)
        if ridge == "relative" and felt:
            block.widen()
            finest = _Added(relative=_ROUNDING * len(lower))
            dual, _ = _in_rounds(block, block.dots(), lower, solver, finest, out)
        return dual
    if getattr(solver, "diagonal_only", False):
        chosen = np.flatnonzero(dots < 0)
        gram = np.diag(block.squared_lengths(chosen))
    else:
        chosen = np.arange(len(dots))
        gram = block.gram(chosen, chosen)
        gram[chosen, chosen] += added.to(gram[chosen, chosen])
    dual = lower.copy()
    dual[chosen] = _solved(solver, gram, dots[chosen], lower[chosen])
    block.push(dual, out)
    return dual


def _in_rounds(
    block: Block, dots: Array, lower: Array, solver: DualSolver, ridge: _Added, out: Tensor
) -> tuple[Array, bool]:
    """Return v [K], and whether the ridge has moved z by more than it may.

    So it is called, and no v is found, where the rounding of float32 is more than the ridge.
    """
    dual: Array = lower.copy()
    here = block.move(dual, out) if lower.any() else dots
    start = here.copy()  # the derivative at v = lower, where every round begins
    waiting = np.ones(len(lower), dtype=bool)
    chosen, gram = np.empty(0, dtype=np.int64), np.empty((0, 0))
    while len(new := np.flatnonzero((here < 0) & waiting)):
        waiting[new] = False
        chosen = np.concatenate([chosen, new])
        gram, added = _grown(gram, block.gram(new, chosen), ridge)
        start[new] += added * lower[new]
        if ridge.relative and not block.is_wide and not _is_definite(gram):
            return dual, True
        rise = _solved(solver, gram, start[chosen], np.zeros(len(chosen)))
        dual[chosen] = lower[chosen] + rise
        here = block.move(dual, out)
    # What is almost opposite to a chosen row is at its edge, and may seem to be within.
    on_edge = bool((waiting & (here < _EDGE * np.abs(start))).any())
    return dual, on_edge or _is_felt(gram, dual[chosen], lower[chosen], ridge)


def _is_definite(gram: Array) -> bool:
    return not dpotrf(gram, clean=0)[1]


def _is_felt(gram: Array, dual: Array, lower: Array, ridge: _Added) -> bool:
    """Whether the ridge on this matrix [k, k] moves z by more than `_FELT` of the push, |A'v|."""
    above = np.flatnonzero(dual > lower)
    if len(above) < 2:
        return False
    diagonal = gram.diagonal()[above]
    ridges = ridge.part_of(diagonal)
    without = gram[above[:, None], above]
    without.flat[:: len(above) + 1] += _ROUNDING * len(above) * diagonal - ridges
    slope = ridges * dual[above]
    _, back, failed = dposv(without, slope)
    return bool(failed or slope @ back > _FELT**2 * (dual @ gram @ dual))


def _grown(gram: Array, rows: Array, ridge: _Added) -> tuple[Array, Array]:
    """The matrix [k, k] with new rows [n, k + n] below it, and the ridge on each of those.

    The new rows' own columns come last.
    """
    old = len(gram)
    added = ridge.to(np.diagonal(rows, offset=old))
    grown = np.empty((rows.shape[1], rows.shape[1]))
    grown[:old, :old], grown[old:], grown[:old, old:] = gram, rows, rows[:, :old].T
    grown.flat[old * (len(grown) + 1) :: len(grown) + 1] += added
    return grown, added


def _solved(solver: DualSolver, gram: Array, dots: Array, lower: Array) -> Array:
    dual = np.asarray(solver(gram, dots, lower), dtype=np.float64)
    if dual.shape != lower.shape or not np.isfinite(dual).all():
        raise ValueError(f"solver must return {len(lower)} finite dual variables, got {dual}")
    return dual
