"""Projections from all products at once, on a device that is waited for once.

A block asks for numbers one after the other: products with the gradient, then those of the rows
that matter, then what the answer does to all rows. On an accelerator each time costs more than all
products of gradient and rows with each other, as long as these are few. So there they are taken at
once, come to the host in one piece, and the rest is arithmetic with K + 1 numbers each way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_mgem.restriction.block import Array, Block, Indices, Module

# Products that an accelerator makes in float64 in about the time of a few waits, or little more.
_FEW = 4_000_000_000


def asks_once(gradient: Tensor, rows: Tensor) -> bool:
    """Whether to ask a device twice costs more than all products of its rows [K, P]."""
    products = (len(rows) + 1) ** 2 * gradient.numel()
    return rows.device.type != "cpu" and products <= _FEW


def begin(blocks: Sequence[Block], alongside: Tensor | None, *, unchecked: int = 0) -> Array:
    """Let blocks begin with what gradient and rows are now; return the numbers alongside.

    Args:
        blocks: of one device; those that are HostBlocks get their products by one copy.
        alongside: further numbers that come with it, [n] in float64.
        unchecked: how many of these, at the front, may be anything.

    Raises:
        FloatingPointError: one of the others is not finite.
    """
    for block in blocks:
        block.begin()
    waiting = [block for block in blocks if isinstance(block, HostBlock)]
    sent = [block.table().flatten() for block in waiting]
    if alongside is not None:
        sent.append(alongside)
    if not sent:
        return np.zeros(0)
    numbers = torch.cat(sent).cpu().numpy() if len(sent) > 1 else sent[0].cpu().numpy()
    for block in waiting:
        numbers = block.take(numbers)
    if not np.isfinite(numbers[unchecked:]).all():
        raise FloatingPointError("a loss or a gradient holds NaN or Inf")
    return numbers


class HostBlock(Block):
    """A Block whose products with each other are on the host, all of them in float64.

    After `begin` of this module. z is written by `settle`.
    """

    def __init__(self, gradient: Tensor, rows: Tensor, module: Module) -> None:
        super().__init__(gradient, rows, module)
        self._wide = True
        self._table: Array = np.zeros((0, 0))
        self._dual: Array = np.zeros(0)

    def begin(self) -> None:
        """Begin with what gradient and rows are now."""
        self._wide = True

    def table(self) -> Tensor:
        """Return the products of gradient and rows with each other, [K + 1, K + 1]; on the device.

        The gradient comes first.
        """
        both = (torch.cat((g[None], a)).double() for g, a in self._runs)
        tables = [each @ each.T for each in both]
        if not tables:
            size = len(self.rows) + 1
            return self.rows.new_zeros((size, size), dtype=torch.float64)
        return tables[0] if len(tables) == 1 else torch.stack(tables).sum(0)

    def take(self, numbers: Array) -> Array:
        """Take the table, flat, from the front of numbers; return the rest."""
        size = len(self.rows) + 1
        self._table = numbers[: size * size].reshape(size, size)
        return numbers[size * size :]

    def dots(self) -> Array:
        """Return <g_m, a_m> for each row, [K]."""
        return self._table[0, 1:]

    def push(self, dual: Array, out: Tensor) -> None:
        """Let z_m be g_m + A_m' v, for v [K]."""
        self._dual = dual.copy()

    def move(self, dual: Array, out: Tensor) -> Array:
        """Let z_m be g_m + A_m' v, for v [K]; return A_m z_m, [K]."""
        self.push(dual, out)
        slopes: Array = self._table[0, 1:] + self._table[1:, 1:] @ dual
        return slopes

    def settle(self, out: Tensor) -> None:
        """Write z_m into out [P]."""
        super().push(self._dual, out)

    def holds_numbers(self, out: Tensor) -> bool:
        """Whether z_m is finite for certain."""
        push = self._dual @ (2 * self._table[0, 1:] + self._table[1:, 1:] @ self._dual)
        return bool(self._table[0, 0] + push <= torch.finfo(out.dtype).max)

    def squared_push(self, dual: Array) -> float:
        """Return ||A_m' v||^2 for v [K]."""
        return float(dual @ self._table[1:, 1:] @ dual)

    def gram(self, new: Indices, chosen: Indices) -> Array:
        """Return the products of new rows with the chosen ones, which end in the new: [n, c]."""
        return self._table[1 + new[:, None], 1 + chosen]

    def squared_lengths(self, chosen: Indices) -> Array:
        """Return ||a_m||^2 of the chosen rows."""
        return np.diagonal(self._table)[1 + chosen]
