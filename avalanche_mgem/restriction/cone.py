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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avalanche_mgem.arguments import finite, real_tensor
from avalanche_mgem.restriction.block import Array, Block, Module
from avalanche_mgem.restriction.dual import DualSolver
from avalanche_mgem.restriction.pivoting import PivotingSolver
from avalanche_mgem.restriction.rounds import Ridge, restrict


@dataclass(frozen=True)
class Projection:
    """What a projection did, over M modules and K memory rows.

    Args:
        gradient: z [P], in the dtype of the gradient; the gradient itself where nothing was
            violated.
        dots: <g_m, a_m> before the projection, float64 [M, K], on the CPU.
        dual: v, float64 [M, K], on the CPU; zero in modules where no row was violated.
        relative_change: ||z - g|| / ||g||.
        cosine: of the angle between z and g.
        module_change: ||z_m - g_m|| / ||g_m||, float64 [M], on the CPU; 0 where g_m is zero.
        module_cosine: of the angle between z_m and g_m, float64 [M], on the CPU; 1 in modules left
            as they are, 0 where a projection began or ended with zero.
        module_names: M names, where whoever asked for the projection has any.
        retries: how many solves needed a larger ridge than they were given.
    """

    gradient: Tensor
    dots: Tensor
    dual: Tensor
    relative_change: float
    cosine: float
    module_change: Tensor
    module_cosine: Tensor
    module_names: tuple[str, ...] = ()
    retries: int = 0

    @property
    def violated_rows(self) -> Tensor:
        """Which rows the gradient would have harmed, bool [M, K]."""
        return self.dots < 0

    @property
    def violated(self) -> bool:
        """Whether the gradient would have harmed any row in any module."""
        return bool((self.dots < 0).any())


def project(
    gradient: Tensor,
    rows: Tensor,
    *,
    memory_strength: float | Tensor = 0.0,
    modules: Sequence[Module] | None = None,
    solver: DualSolver | None = None,
    ridge: Ridge = "relative",
) -> Projection:
    """Project `gradient` so that no row is harmed in any module.

    Args:
        gradient: g, [P].
        rows: A, [K, P], same dtype and device as the gradient.
        memory_strength: lower bound of the dual variables, >= 0; one number or one a row, [K].
            Only modules with a violated row are touched at all.
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
    strength = _check(gradient, rows, memory_strength)
    modules = [[slice(0, gradient.numel())]] if modules is None else modules
    _check_modules(modules, gradient.numel())
    if not (isinstance(ridge, str) and ridge == "relative"):
        finite("ridge", ridge, minimum=0.0)
    if not (solver is None or isinstance(solver, DualSolver)) or isinstance(solver, type):
        raise ValueError(f"solver must be None or a DualSolver, got {solver!r}")
    with torch.autocast(gradient.device.type, enabled=False):
        return _project(
            gradient,
            [Block(gradient, rows, module) for module in modules],
            strength,
            PivotingSolver() if solver is None else solver,
            ridge,
        )


def _project(
    gradient: Tensor,
    blocks: Sequence[Block],
    strength: Array,
    solver: DualSolver,
    ridge: Ridge,
) -> Projection:
    dots = np.zeros((len(blocks), len(strength)))
    dual, products = np.zeros_like(dots), np.zeros((len(blocks), 4))
    projected, retries = gradient, getattr(solver, "retries", 0)
    touched: list[int] = []
    # Module by module, all of it: what a processor has just read of a module it reads again.
    for index, block in enumerate(blocks):
        dots[index] = block.dots()
        if not np.isfinite(dots[index]).all():
            raise FloatingPointError(
                "the gradient or a memory row holds NaN or Inf: nothing to project"
            )
        if not (dots[index] < 0).any():
            continue
        projected = projected if touched else gradient.clone()
        touched.append(index)
        dual[index] = restrict(block, dots[index], strength, solver, ridge, projected)
        products[index] = block.products(projected)
    if not (np.sqrt(products[:, 1]) <= torch.finfo(gradient.dtype).max).all():
        raise FloatingPointError("the projected gradient is not finite: its numbers are too large")
    change, cosine, module_change, module_cosine = _change(gradient, blocks, products, touched)
    return Projection(
        projected,
        torch.from_numpy(dots),
        torch.from_numpy(dual),
        change,
        cosine,
        torch.from_numpy(module_change),
        torch.from_numpy(module_cosine),
        retries=getattr(solver, "retries", 0) - retries,
    )


def _check(gradient: Tensor, rows: Tensor, memory_strength: float | Tensor) -> Array:
    for name, given, shape in (("gradient", gradient, "[P]"), ("rows", rows, "[K, P]")):
        if not real_tensor(name, given, shape=shape).is_floating_point():
            raise ValueError(f"{name} must hold floating-point numbers, got {given.dtype}")
    if rows.shape[1] != gradient.numel():
        raise ValueError(
            f"rows must be [K, P] for a gradient [P], got rows {tuple(rows.shape)} "
            f"for a gradient {tuple(gradient.shape)}"
        )
    if gradient.dtype != rows.dtype or gradient.device != rows.device:
        raise ValueError(
            f"rows must be of the gradient's dtype and device, got {rows.dtype} on {rows.device} "
            f"for {gradient.dtype} on {gradient.device}"
        )
    if not isinstance(memory_strength, Tensor):
        return np.full(len(rows), finite("memory_strength", memory_strength, minimum=0.0))
    strength = real_tensor("memory_strength", memory_strength).detach().to("cpu", torch.float64)
    if strength.shape != (len(rows),) or not bool((strength.isfinite() & (strength >= 0)).all()):
        raise ValueError(
            f"memory_strength must be one finite number >= 0 or one for each of {len(rows)} rows, "
            f"got {memory_strength}"
        )
    return np.asarray(strength.numpy(), dtype=np.float64)


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


def _change(
    gradient: Tensor, blocks: Sequence[Block], products: Array, touched: Sequence[int]
) -> tuple[float, float, Array, Array]:
    """The change and the cosine of the whole, then [M] of them for the modules.

    products: of each module, as `Block.products` has them, [M, 4]; zero in those left as they are.
    """
    changes, cosines = np.zeros(len(blocks)), np.ones(len(blocks))
    if not touched:
        return 0.0, 1.0, changes, cosines
    left = _left([blocks[index].module for index in touched], gradient.numel())
    whole = products.sum(axis=0)
    whole[[0, 1, 3]] += Block(gradient, gradient[None], left).dots()
    changes[touched], cosines[touched] = _ratios(products[touched])
    (change,), (cosine,) = _ratios(whole[None])
    return float(change), float(cosine), changes, cosines


def _left(modules: Sequence[Module], size: int) -> Module:
    """What lies in none of the modules."""
    parts = sorted((part.start, part.stop) for module in modules for part in module)
    starts = [0, *(stop for _, stop in parts)]
    stops = [*(start for start, _ in parts), size]
    return [slice(a, b) for a, b in zip(starts, stops, strict=True) if a < b]


def _ratios(products: Array) -> tuple[Array, Array]:
    """Relative changes and cosines from rows of `Block.products`, [N, 4]; 0 for 0 / 0."""
    length, length_after, change = np.sqrt(products[:, :3].T)
    # A division by infinity is zero, whatever is divided: products are finite. One division after
    # the other: two short lengths may have too small a product.
    length, length_after = (np.where(size > 0, size, np.inf) for size in (length, length_after))
    cosine = products[:, 3] / length / length_after
    return change / length, np.minimum(np.maximum(cosine, -1.0), 1.0)
