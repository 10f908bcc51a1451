"""Projection of a gradient onto the cone of those that do no harm to the memory.

For the gradient g and the memory rows A (K gradients of the loss on memorised samples), GEM asks
for

    z = argmin 1/2 ||z - g||^2   subject to   Az >= 0                     (arXiv 1706.08840, eq. 8)

and finds it through the dual, z = g + A'v with v >= memory strength. mGEM (arXiv 2410.00868) asks
the same of every module of the parameters on its own: <z_m, a_m> >= 0 for each module m and row a.
Only dot products between the long vectors are needed, and only those of modules where some <g_m,
a_m> < 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_mgem.arguments import finite, real_tensor
from avalanche_mgem.restriction.block import Array, Block, Module, without_autocast
from avalanche_mgem.restriction.change import Change, Projection
from avalanche_mgem.restriction.dual import DualSolver
from avalanche_mgem.restriction.host import HostBlock, asks_once, begin
from avalanche_mgem.restriction.pivoting import PivotingSolver
from avalanche_mgem.restriction.polyak import PolyakBounds
from avalanche_mgem.restriction.rounds import Ridge, restrict


def project(
    gradient: Tensor,
    rows: Tensor,
    *,
    memory_strength: float | Tensor | PolyakBounds = 0.0,
    modules: Sequence[Module] | None = None,
    solver: DualSolver | None = None,
    ridge: Ridge = "relative",
) -> Projection:
    """Project `gradient` so that no row is harmed in any module.

    Args:
        gradient: g, [P].
        rows: A, [K, P], same dtype and device as the gradient, or bfloat16 beside float32. These
            are what z does no harm to, as they are; products with them are those of float32 rows.
        memory_strength: lower bound of the dual variables, >= 0; one number or one a row, [K]; or
            `polyak.PolyakBounds`, which find it with the rows. Only modules with a violated row are
            touched at all.
        modules: disjoint sets of positions, each a sequence of slices of [0, P); positions in none
            of them are left as they are. None: all positions are one module.
        solver: of the dual problem; None: PivotingSolver().
        ridge: added to the diagonal of each module's Gram matrix before it is solved. A number is
            absolute (GEM's code adds 1e-3, which is felt when gradients are small); "relative" adds
            1e-7 of each row's own squared length, which leaves z the same when a row is rescaled.
            Where that moves z by more than 1e-5 of ||z_m - g_m||, as with rows that are almost
            opposite, an exact solver solves again with as good as none. A solver that only looks at
            the diagonal gets no ridge.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, modules that overlap or reach beyond
            P, a memory strength that is negative or not finite, an unknown ridge.
        FloatingPointError: a dot product is not finite.
    """
    cone = Cone(gradient, rows, modules=modules, solver=solver, ridge=ridge)
    return cone.project(memory_strength).projection()


class Cone:
    """The gradients that do no harm to some rows, made ready to be projected on again and again.

    Args:
        gradient: g, [P], of which `project` reads what is in it by then; so of the rows.
        rows: A, [K, P].
        modules: as of `project`; likewise solver and ridge.

    Raises:
        ValueError: as `project`.
    """

    def __init__(
        self,
        gradient: Tensor,
        rows: Tensor,
        *,
        modules: Sequence[Module] | None = None,
        solver: DualSolver | None = None,
        ridge: Ridge = "relative",
    ) -> None:
        _check(gradient, rows)
        modules = [[slice(0, gradient.numel())]] if modules is None else modules
        _check_modules(modules, gradient.numel())
        if not (isinstance(ridge, str) and ridge == "relative"):
            finite("ridge", ridge, minimum=0.0)
        if not (solver is None or isinstance(solver, DualSolver)) or isinstance(solver, type):
            raise ValueError(f"solver must be None or a DualSolver, got {solver!r}")
        self._gradient, self._rows, self._ridge = gradient, rows, ridge
        self._solver = PivotingSolver() if solver is None else solver
        kind = HostBlock if asks_once(gradient, rows) else Block
        self._blocks: list[Block] = [kind(gradient, rows, module) for module in modules]

    def project(
        self,
        memory_strength: float | Tensor | PolyakBounds = 0.0,
        *,
        alongside: Tensor | None = None,
    ) -> Change:
        """Project what the gradient is now.

        Args:
            memory_strength: as of the function `project`.
            alongside: numbers that are to be finite too, [n] in float64, on the rows' device. They
                come to the host together with what is needed there.

        Raises:
            ValueError: a memory strength that is negative or not finite.
            FloatingPointError: a dot product, or a number alongside, is not finite.
        """
        with without_autocast(self._gradient):
            if isinstance(memory_strength, PolyakBounds):
                strength = self._begin_polyak(memory_strength, alongside)
            else:
                strength = _strength(memory_strength, len(self._rows))
                begin(self._blocks, alongside)
            return self._project(strength)

    def _begin_polyak(self, bounds: PolyakBounds, alongside: Tensor | None) -> Array:
        """Begin, and return the bounds that the rows give, [K]."""
        weights = _strength(bounds.weights, len(self._rows))
        columns = [part for block in self._blocks for part in block.module]
        numbers = [bounds.loss.detach().reshape(1).to(self._rows.device, torch.float64)]
        numbers.append(bounds.descents(self._rows, columns))
        numbers += [] if alongside is None else [alongside]
        loss, descent, *_ = begin(self._blocks, torch.cat(numbers), unchecked=2)
        return bounds.strength(float(loss), float(descent)) * weights

    def _project(self, strength: Array) -> Change:
        dots = np.zeros((len(self._blocks), len(strength)))
        dual, retries = np.zeros_like(dots), getattr(self._solver, "retries", 0)
        projected, touched = self._gradient, list[int]()
        # Module by module, all of it: what a processor has just read of a module it reads again.
        for index, block in enumerate(self._blocks):
            dots[index] = block.dots()
            least, largest = dots[index].min(initial=0.0), dots[index].max(initial=0.0)
            if not (-np.inf < least and largest < np.inf):  # NaN is neither
                raise FloatingPointError(
                    "the gradient or a memory row holds NaN or Inf: nothing to project"
                )
            if least >= 0.0:
                continue
            projected = projected if touched else self._gradient.clone()
            touched.append(index)
            dual[index] = restrict(
                block, dots[index], strength, self._solver, self._ridge, projected
            )
            block.settle(projected)
        retries = getattr(self._solver, "retries", 0) - retries
        change = Change(
            self._gradient, projected, self._blocks, touched, dots, dual, retries, strength
        )
        change.require_finite()
        return change


def _check(gradient: Tensor, rows: Tensor) -> None:
    for name, given, shape in (("gradient", gradient, "[P]"), ("rows", rows, "[K, P]")):
        if not real_tensor(name, given, shape=shape).is_floating_point():
            raise ValueError(f"{name} must hold floating-point numbers, got {given.dtype}")
    if rows.shape[1] != gradient.numel():
        raise ValueError(
            f"rows must be [K, P] for a gradient [P], got rows {tuple(rows.shape)} "
            f"for a gradient {tuple(gradient.shape)}"
        )
    dtypes = (gradient.dtype, rows.dtype)
    fitting = dtypes[0] == dtypes[1] or dtypes == (torch.float32, torch.bfloat16)
    if not fitting or gradient.device != rows.device:
        raise ValueError(
            f"rows must be of the gradient's dtype and device, or bfloat16 beside float32, got "
            f"{rows.dtype} on {rows.device} for {gradient.dtype} on {gradient.device}"
        )


def _strength(memory_strength: float | Tensor, n_rows: int) -> Array:
    if not isinstance(memory_strength, Tensor):
        return np.full(n_rows, finite("memory_strength", memory_strength, minimum=0.0))
    # By way of a list, as these are few: each operation on a tensor takes longer.
    given = real_tensor("memory_strength", memory_strength).tolist()
    strength: Array = np.array(given, dtype=np.float64)
    least, largest = strength.min(initial=0.0), strength.max(initial=0.0)
    # NaN is neither.
    if strength.shape != (n_rows,) or not (least >= 0.0 and largest < np.inf):
        raise ValueError(
            f"memory_strength must be one finite number >= 0 or one for each of {n_rows} rows, "
            f"got {memory_strength}"
        )
    return strength


def _check_modules(modules: Sequence[Module], size: int) -> None:
    if not isinstance(modules, Sequence) or not modules:
        raise ValueError(f"modules must name at least one module, got {modules!r}")
    try:
        parts = sorted((part.start, part.stop) for module in modules for part in module)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"modules must be sequences of slices, got {modules!r}") from error
    ends = [0, *(stop for _, stop in parts)]
    starts = [*(start for start, _ in parts), size]
    backward = any(start > stop for start, stop in parts)
    if backward or any(start < end for start, end in zip(starts, ends, strict=True)):
        raise ValueError(f"modules must be disjoint slices of [0, {size}), got {modules}")
