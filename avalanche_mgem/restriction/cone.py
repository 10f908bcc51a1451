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
# Columns per product: small enough to stay in the cache, so that float64 needs no second copy of
# the rows.
_CHUNK = 4096


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
    """

    gradient: Tensor
    dots: Tensor
    dual: Tensor
    relative_change: float
    cosine: float

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
        ValueError: shapes that do not fit, a memory strength that is negative or not finite.
        FloatingPointError: a dot product is not finite.
    """
    strength = _check(gradient, rows, memory_strength)
    modules = [[slice(0, gradient.numel())]] if modules is None else modules
    dots = torch.stack([_dots(gradient, rows, module) for module in modules]).cpu()
    if not dots.isfinite().all():
        raise FloatingPointError(
            "the gradient or a memory row holds NaN or Inf: nothing to project"
        )
    dual = torch.zeros_like(dots)
    touched = torch.nonzero((dots < 0).any(dim=1)).flatten().tolist()
    if not touched:
        return Projection(gradient, dots, dual, relative_change=0.0, cosine=1.0)
    solver = QuadprogSolver() if solver is None else solver
    projected = gradient.clone()
    for index in touched:
        gram = _regularised_gram(rows, modules[index], solver, ridge)
        dual[index] = torch.from_numpy(solver(gram, dots[index].numpy(), strength))
        _push(projected, rows, modules[index], dual[index])
    return Projection(projected, dots, dual, *_change(gradient, projected))


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


def _chunks(module: Module) -> Iterator[slice]:
    for part in module:
        for start in range(part.start, part.stop, _CHUNK):
            yield slice(start, min(start + _CHUNK, part.stop))


def _dots(gradient: Tensor, rows: Tensor, module: Module) -> Tensor:
    """<g_m, a_m> for each row: float64 [K]."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for columns in _chunks(module):
        total += rows[:, columns].double() @ gradient[columns].double()
    return total


def _regularised_gram(
    rows: Tensor, module: Module, solver: DualSolver, ridge: Ridge
) -> NDArray[np.float64]:
    """A_m A_m' with its ridge, float64 [K, K]; only the diagonal where that is all it takes."""
    if getattr(solver, "diagonal_only", False):
        lengths = sum(rows[:, columns].double().square().sum(1) for columns in _chunks(module))
        return np.diag(torch.as_tensor(lengths).cpu().numpy())
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for columns in _chunks(module):
        chunk = rows[:, columns].double()
        gram.addmm_(chunk, chunk.T)
    diagonal = gram.diagonal()
    diagonal += RELATIVE_RIDGE * diagonal if ridge == "relative" else float(ridge)
    return np.asarray(gram.cpu().numpy(), dtype=np.float64)


def _push(projected: Tensor, rows: Tensor, module: Module, dual: Tensor) -> None:
    """Add A_m' v to the module's positions, in place."""
    weights = dual.to(rows.device)
    for columns in _chunks(module):
        moved = projected[columns].double() + weights @ rows[:, columns].double()
        projected[columns] = moved.to(projected.dtype)


def _change(gradient: Tensor, projected: Tensor) -> tuple[float, float]:
    before, after = gradient.double(), projected.double()
    length, length_after = before.norm(), after.norm()
    change = float((after - before).norm() / length)
    if length_after == 0:
        return change, 0.0
    # Divided first: the product of two short vectors may be too small for any float.
    cosine = torch.dot(before / length, after / length_after)
    return change, float(cosine.clamp(-1.0, 1.0))
