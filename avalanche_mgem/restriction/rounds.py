"""The projection of one module, from as little of its Gram matrix as will do.

Most rows of a memory stay at their bound: at an optimum they push no more than the memory strength
asks. So an exact solver is given the rows that a step would harm, and then, in rounds, those that
the answer so far would harm. A row that no round adds satisfies the optimality conditions of the
whole problem at its bound, so the answer is that of the whole problem; each round adds a row, so
there are K at most, and hardly ever more than two.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from avalanche_mgem.restriction.block import Array, Block
from avalanche_mgem.restriction.dual import DualSolver

Ridge = float | Literal["relative"]

RELATIVE_RIDGE = 1e-7


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
            diagonal solver gets none.
        out: z [P], of which the module's positions are written.

    Returns:
        v [K].
    """
    if getattr(solver, "exact", False):
        return _in_rounds(block, dots, lower, solver, ridge, out)
    if getattr(solver, "diagonal_only", False):
        chosen = np.flatnonzero(dots < 0)
        gram = np.diag(block.squared_lengths(chosen))
    else:
        chosen = np.arange(len(dots))
        gram = block.gram(chosen, chosen)
        gram[chosen, chosen] += _ridge(gram[chosen, chosen], ridge)
    dual: Array = lower.copy()
    dual[chosen] = _solved(solver, gram, dots[chosen], lower[chosen])
    block.push(dual, out)
    return dual


def _in_rounds(
    block: Block, dots: Array, lower: Array, solver: DualSolver, ridge: Ridge, out: Tensor
) -> Array:
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
        rise = _solved(solver, gram, start[chosen], np.zeros(len(chosen)))
        dual[chosen] = lower[chosen] + rise
        here = block.move(dual, out)
    return dual


def _grown(gram: Array, rows: Array, ridge: Ridge) -> tuple[Array, Array]:
    """The matrix [k, k] with new rows [n, k + n] below it, and the ridge on each of those.

    The new rows' own columns come last.
    """
    old = len(gram)
    added = _ridge(np.diagonal(rows, offset=old), ridge)
    grown = np.empty((rows.shape[1], rows.shape[1]))
    grown[:old, :old], grown[old:], grown[:old, old:] = gram, rows, rows[:, :old].T
    grown.flat[old * (len(grown) + 1) :: len(grown) + 1] += added
    return grown, added


def _ridge(squares: Array, ridge: Ridge) -> Array:
    return RELATIVE_RIDGE * squares if ridge == "relative" else np.full(len(squares), float(ridge))


def _solved(solver: DualSolver, gram: Array, dots: Array, lower: Array) -> Array:
    dual = np.asarray(solver(gram, dots, lower), dtype=np.float64)
    if dual.shape != lower.shape or not np.isfinite(dual).all():
        raise ValueError(f"solver must return {len(lower)} finite dual variables, got {dual}")
    return dual
