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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avalanche_mgem.arguments import finite
from avalanche_mgem.restriction.dual import DualSolver, QuadprogSolver

Module = Sequence[slice]
Ridge = float | Literal["relative"]

RELATIVE_RIDGE = 1e-7
# Columns per product: so few that float64 needs no second copy of the rows; on the CPU they stay in
# the cache, on other devices a call costs more than it does there.
_CHUNK = 4096
_CHUNK_ELSEWHERE = 1 << 18


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
        module_cosine: of the angle between z_m and g_m, float64 [M], on the CPU; 0 where either is
            zero.
        module_names: M names, where whoever asked for the projection has any.
    """

    gradient: Tensor
    dots: Tensor
    dual: Tensor
    relative_change: float
    cosine: float
    module_change: Tensor
    module_cosine: Tensor
    module_names: tuple[str, ...] = ()

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
        solver: of the dual problem; None: QuadprogSolver().
        ridge: added to the diagonal of each module's Gram matrix before it is solved. A number is
            absolute (GEM's code adds 1e-3, which is felt when gradients are small); "relative" adds
            1e-7 of each row's own squared length, which leaves z the same when a row is rescaled.
            A solver that only looks at the diagonal gets no ridge.

    Raises:
        ValueError: shapes that do not fit, modules that overlap or reach beyond P, a memory
            strength that is negative or not finite, an unknown ridge.
        FloatingPointError: a dot product is not finite.
    """
    strength = _check(gradient, rows, memory_strength)
    modules = [[slice(0, gradient.numel())]] if modules is None else modules
    _check_modules(modules, gradient.numel())
    if ridge != "relative":
        finite("ridge", ridge, minimum=0.0)
    dots = torch.stack([_dots(gradient, rows, module) for module in modules]).cpu()
    if not dots.isfinite().all():
        raise FloatingPointError(
            "the gradient or a memory row holds NaN or Inf: nothing to project"
        )
    dual = torch.zeros_like(dots)
    touched = torch.nonzero((dots < 0).any(dim=1)).flatten().tolist()
    if not touched:
        still = torch.zeros(len(modules), dtype=torch.float64)
        return Projection(gradient, dots, dual, 0.0, 1.0, still, still + 1.0)
    solver = QuadprogSolver() if solver is None else solver
    projected = gradient.clone()
    for index in touched:
        gram = _regularised_gram(rows, modules[index], solver, ridge)
        dual[index] = _solved(solver, gram, dots[index].numpy(), strength)
        _push(projected, rows, modules[index], dual[index])
    return Projection(projected, dots, dual, *_change(gradient, projected, modules))


def _check(gradient: Tensor, rows: Tensor, memory_strength: float | Tensor) -> NDArray[np.float64]:
    if gradient.ndim != 1 or rows.ndim != 2 or rows.shape[1] != gradient.numel():
        raise ValueError(
            f"rows must be [K, P] for a gradient [P], got rows {tuple(rows.shape)} "
            f"for a gradient {tuple(gradient.shape)}"
        )
    if not isinstance(memory_strength, Tensor):
        return np.full(len(rows), finite("memory_strength", memory_strength, minimum=0.0))
    strength = memory_strength.detach().to("cpu", torch.float64)
    if strength.shape != (len(rows),) or not bool((strength.isfinite() & (strength >= 0)).all()):
        raise ValueError(
            f"memory_strength must be one finite number >= 0 or one for each of {len(rows)} rows, "
            f"got {memory_strength}"
        )
    return np.asarray(strength.numpy(), dtype=np.float64)


def _check_modules(modules: Sequence[Module], size: int) -> None:
    if not modules:
        raise ValueError("modules must name at least one module, got none")
    parts = sorted((part.start, part.stop) for module in modules for part in module)
    ends = [0, *(stop for _, stop in parts)]
    starts = [*(start for start, _ in parts), size]
    if any(start < end for start, end in zip(starts, ends, strict=True)):
        raise ValueError(f"modules must be disjoint slices of [0, {size}), got {modules}")


def _solved(
    solver: DualSolver,
    gram: NDArray[np.float64],
    dots: NDArray[np.float64],
    lower: NDArray[np.float64],
) -> Tensor:
    dual = np.asarray(solver(gram, dots, lower), dtype=np.float64)
    if dual.shape != lower.shape or not np.isfinite(dual).all():
        raise ValueError(f"solver must return {len(lower)} finite dual variables, got {dual}")
    return torch.from_numpy(dual)


def _chunks(module: Module, device: torch.device) -> Iterator[slice]:
    size = _CHUNK if device.type == "cpu" else _CHUNK_ELSEWHERE
    for part in module:
        for start in range(part.start, part.stop, size):
            yield slice(start, min(start + size, part.stop))


def _dots(gradient: Tensor, rows: Tensor, module: Module) -> Tensor:
    """<g_m, a_m> for each row: float64 [K]."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for columns in _chunks(module, rows.device):
        total += rows[:, columns].double() @ gradient[columns].double()
    return total


def _regularised_gram(
    rows: Tensor, module: Module, solver: DualSolver, ridge: Ridge
) -> NDArray[np.float64]:
    """A_m A_m' with its ridge, float64 [K, K]; only the diagonal where that is all it takes."""
    if getattr(solver, "diagonal_only", False):
        lengths = sum(
            rows[:, columns].double().square().sum(1) for columns in _chunks(module, rows.device)
        )
        return np.diag(torch.as_tensor(lengths).cpu().numpy())
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for columns in _chunks(module, rows.device):
        chunk = rows[:, columns].double()
        gram.addmm_(chunk, chunk.T)
    diagonal = gram.diagonal()
    diagonal += RELATIVE_RIDGE * diagonal if ridge == "relative" else float(ridge)
    return np.asarray(gram.cpu().numpy(), dtype=np.float64)


def _push(projected: Tensor, rows: Tensor, module: Module, dual: Tensor) -> None:
    """Add A_m' v to the module's positions, in place."""
    weights = dual.to(rows.device)
    for columns in _chunks(module, rows.device):
        moved = projected[columns].double() + weights @ rows[:, columns].double()
        projected[columns] = moved.to(projected.dtype)


def _change(
    gradient: Tensor, projected: Tensor, modules: Sequence[Module]
) -> tuple[float, float, Tensor, Tensor]:
    """The change and the cosine of the whole, then [M] of them for the modules."""
    everything = [*modules, _rest(modules, gradient.numel())]
    sums = torch.stack([_products(gradient, projected, module) for module in everything]).cpu()
    changes, cosines = _ratios(torch.cat([sums.sum(0, keepdim=True), sums[:-1]]))
    return float(changes[0]), float(cosines[0]), changes[1:], cosines[1:]


def _products(gradient: Tensor, projected: Tensor, module: Module) -> Tensor:
    """||g_m||^2, ||z_m||^2, ||z_m - g_m||^2 and <g_m, z_m>, float64 [4]."""
    sums = torch.zeros(4, dtype=torch.float64, device=gradient.device)
    for columns in _chunks(module, gradient.device):
        before, after = gradient[columns].double(), projected[columns].double()
        change = after - before
        pairs = ((before, before), (after, after), (change, change), (before, after))
        sums += torch.stack([torch.dot(a, b) for a, b in pairs])
    return sums


def _ratios(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Relative changes and cosines from rows of `_products`, [N, 4]; 0 for 0 / 0."""
    length, length_after, change = sums[:, :3].sqrt().unbind(1)
    # One division after the other: the product of two short lengths may be too small for a float.
    cosine = (sums[:, 3] / length / length_after).nan_to_num(0.0, 0.0, 0.0)
    return (change / length).nan_to_num(0.0, 0.0, 0.0), cosine.clamp(-1.0, 1.0)


def _rest(modules: Sequence[Module], size: int) -> Module:
    """What lies in no module."""
    parts = sorted((part.start, part.stop) for module in modules for part in module)
    starts = [0, *(stop for _, stop in parts)]
    stops = [*(start for start, _ in parts), size]
    return [slice(a, b) for a, b in zip(starts, stops, strict=True) if a < b]
