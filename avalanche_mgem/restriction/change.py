"""What a projection did, measured when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from avalanche_mgem.restriction.block import Array, Block, Module, without_autocast


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
        lower: of the dual variables, the bounds, float64 [K], on the CPU.
        push: ||A' lower|| / ||g||, over the modules with a violated row: how far the memory
            strength alone moves the gradient.
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
    lower: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    push: float = 0.0

    @property
    def violated_rows(self) -> Tensor:
        """Which rows the gradient would have harmed, bool [M, K]."""
        return self.dots < 0

    @property
    def violated(self) -> bool:
        """Whether the gradient would have harmed any row in any module."""
        return bool((self.dots < 0).any())


@dataclass(frozen=True)
class Change:
    """A gradient before and after its projection; `projection` measures how far it moved.

    That takes some more passes over the long vectors, which must be as they were until then.

    Args:
        before: g, [P].
        after: z, [P]; the same tensor where nothing was violated.
        blocks: of the M modules.
        touched: those with a violated row.
        dots: [M, K].
        dual: [M, K].
        retries: as of Projection.
        lower: bounds of the dual variables, [K].
    """

    before: Tensor
    after: Tensor
    blocks: Sequence[Block]
    touched: Sequence[int]
    dots: Array
    dual: Array
    retries: int
    lower: Array

    @property
    def violated(self) -> bool:
        """Whether the gradient would have harmed any row in any module."""
        return len(self.touched) > 0

    def require_finite(self) -> None:
        """Raise FloatingPointError unless z is finite."""
        if all(self.blocks[index].holds_numbers(self.after) for index in self.touched):
            return
        lengths = np.sqrt(self._products()[:, 1])
        if not (lengths <= torch.finfo(self.before.dtype).max).all():
            raise FloatingPointError(
                "the projected gradient is not finite: its numbers are too large"
            )

    def projection(self, module_names: tuple[str, ...] = ()) -> Projection:
        """Measure how far the gradient moved."""
        change, cosine, module_change, module_cosine = _change(
            self.before, self.blocks, self._products(), self.touched
        )
        return Projection(
            self.after,
            torch.from_numpy(self.dots),
            torch.from_numpy(self.dual),
            change,
            cosine,
            torch.from_numpy(module_change),
            torch.from_numpy(module_cosine),
            module_names,
            self.retries,
            torch.from_numpy(self.lower),
            self._push(),
        )

    def _push(self) -> float:
        """||A' lower|| / ||g||; 0 where g is zero."""
        if not (self.touched and self.lower.any()):
            return 0.0
        with torch.autocast(self.before.device.type, enabled=False):
            square = sum(self.blocks[index].squared_push(self.lower) for index in self.touched)
            length = float(torch.linalg.vector_norm(self.before, dtype=torch.float64))
        return math.sqrt(max(square, 0.0)) / length if length > 0.0 else 0.0

    def _products(self) -> Array:
        """`Block.products` of each module, [M, 4]; zero in those left as they are."""
        products = np.zeros((len(self.blocks), 4))
        with without_autocast(self.before):
            for index in self.touched:
                products[index] = self.blocks[index].products(self.after)
        return products


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
