"""One module's part of a projection: its dot products, its Gram matrix, its push.

The memory rows A [K, P] are read in runs of columns that stay in the cache. Long modules are
multiplied in float32 a run at a time and the runs are summed in float64, which is within 1e-6 of
the product of the lengths; short ones, and those whose sums are below 1e-30 or beyond 1e34, in
float64 throughout. (Beside longer rows, one so short that its products with the gradient vanish in
float32 is not felt in a long module.) What is K numbers or K x K comes back as a float64 array of
numpy's.

Rows in bfloat16 take half the memory and are read as float32: a run of them is widened while it is
at hand, so that what is multiplied and summed is as above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Module = Sequence[slice]

# A module of no more columns is multiplied in float64: it costs nothing there, and rows may be more
# than columns, whose Gram matrix is singular but for the ridge.
_SHORT = 4096
# Numbers of a run: what stays in a CPU core's cache; what keeps another device busy.
_RUN = 1 << 18
_LONGEST = 12288  # columns of a run that float32 may add up
_RUN_ELSEWHERE = 1 << 22
# Rows of a Gram matrix at a time: below their panel, products need not be.
_PANEL = 128
# Squared lengths within these bounds were summed in float32 without losing what matters.
_SMALLEST, _LARGEST = 1e-30, 1e34


class Block:
    """The gradient g_m [P_m] and the rows A_m [K, P_m] of one module m.

    Args:
        gradient: g, [P].
        rows: A, [K, P], on the same device, of the same dtype or bfloat16.
        module: the positions of the module, slices of [0, P).
    """

    def __init__(self, gradient: Tensor, rows: Tensor, module: Module) -> None:
        self.gradient, self.rows, self.module = gradient, rows, module
        size = sum(part.stop - part.start for part in module)
        # Other devices may round float32 products to fewer digits than float32 has.
        on_cpu = rows.device.type == "cpu"
        single = gradient.dtype == torch.float32 and rows.dtype in (torch.float32, torch.bfloat16)
        self._may_be_single = size > _SHORT and on_cpu and single
        self.begin()
        self._columns = self._cut(len(rows))
        self._runs = [(gradient[columns], rows[:, columns]) for columns in self._columns]

    def begin(self) -> None:
        """Begin with what gradient and rows are now."""
        # The CPU too rounds to fewer digits where torch was told to.
        self._wide = not (self._may_be_single and _multiplies_in_float32())

    @property
    def is_wide(self) -> bool:
        """Whether it is multiplied in float64."""
        return self._wide

    def widen(self) -> None:
        """Multiply in float64 from now on."""
        self._wide = True

    def dots(self) -> Array:
        """Return <g_m, a_m> for each row, [K]."""
        dots = _sum([torch.mv(rows, gradient) for gradient, rows in self._read()], len(self.rows))
        largest = np.abs(dots).max(initial=0.0)
        held = np.isfinite(largest) and (largest == 0.0 or largest > _SMALLEST)
        return dots if self._held(bool(held)) else self.dots()

    def push(self, dual: Array, out: Tensor) -> None:
        """Write z_m = g_m + A_m' v into out [P], for v [K]."""
        for _ in self._pushed(dual, out):
            pass

    def move(self, dual: Array, out: Tensor) -> Array:
        """Write z_m = g_m + A_m' v into out [P], for v [K]; return A_m z_m, [K].

        That is the derivative of the dual problem, but for its ridge.
        """
        slopes = [torch.mv(rows, moved) for rows, moved in self._pushed(dual, out)]
        total = _sum(slopes, len(self.rows))
        return total if self._held(bool(np.isfinite(total).all())) else self.move(dual, out)

    def _pushed(self, dual: Array, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Write z_m, run by run; give each run of the rows and of z_m while it is at hand."""
        weights = self._weights(dual)
        for columns, (gradient, rows) in zip(self._columns, self._read(), strict=True):
            moved = gradient + torch.mv(rows.T, weights)
            out[columns] = moved
            yield rows, moved

    def settle(self, out: Tensor) -> None:
        """Let z_m be in out [P], if the last `push` or `move` has not written it."""

    def holds_numbers(self, out: Tensor) -> bool:
        """Whether z_m in out [P] is finite for certain; False where its squares overflow too."""
        lengths = (torch.linalg.vector_norm(out[part]) for part in self.module)
        return all(math.isfinite(length.item()) for length in lengths)

    def products(self, out: Tensor) -> Array:
        """Return ||g_m||^2, ||z_m||^2, ||z_m - g_m||^2 and <g_m, z_m>, with z_m from out [P]."""
        terms = []
        for columns, (gradient, _) in zip(self._columns, self._runs, strict=True):
            g, z = self._widened(gradient), self._widened(out[columns])
            change = z - g
            pairs = ((g, g), (z, z), (change, change), (g, z))
            terms.append(torch.stack([torch.dot(a, b) for a, b in pairs]))
        products = _sum(terms, 4)
        held = np.isfinite(products).all() and products[:2].min() > _SMALLEST
        return products if self._held(bool(held)) else self.products(out)

    def squared_push(self, dual: Array) -> float:
        """Return ||A_m' v||^2 for v [K]."""
        weights = self._weights(dual)
        pushes = (torch.mv(rows.T, weights).double() for _, rows in self._read())
        return float(_sum([torch.dot(push, push) for push in pushes]))

    def gram(self, new: Indices, chosen: Indices) -> Array:
        """Return the products of new rows with the chosen ones, which end in the new: [n, c]."""
        index = torch.from_numpy(chosen).to(self.rows.device)
        every = np.array_equal(chosen, np.arange(len(self.rows)))
        products = []
        for columns in self._cut(1):  # products between rows are sooner over longer runs
            rows = self.rows[:, columns]
            picked = self._widened(rows if every else rows.index_select(0, index))
            own = picked[-len(new) :] @ picked.T if len(new) < len(chosen) else _upper(picked)
            products.append(own)
        gram = _sum(products, len(new), len(chosen))
        if len(new) == len(chosen):
            gram = np.triu(gram) + np.triu(gram, 1).T
        squares = np.diagonal(gram, offset=len(chosen) - len(new))
        small = new[squares <= _SMALLEST]
        within = squares.max() < _LARGEST and not self._any(torch.from_numpy(small))
        return gram if self._held(bool(within)) else self.gram(new, chosen)

    def squared_lengths(self, chosen: Indices) -> Array:
        """Return ||a_m||^2 of the chosen rows."""
        index = torch.from_numpy(chosen).to(self.rows.device)
        chosen_rows = (rows.index_select(0, index).double() for _, rows in self._runs)
        return _sum([rows.square().sum(1) for rows in chosen_rows], len(chosen))

    def _read(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The runs as they are multiplied; what is of another dtype is converted one at a time."""
        if not self._wide and self.rows.dtype == self.gradient.dtype:
            return self._runs
        return ((self._widened(gradient), self._widened(rows)) for gradient, rows in self._runs)

    def _widened(self, values: Tensor) -> Tensor:
        return values.double() if self._wide else values.to(self.gradient.dtype)

    def _cut(self, n_rows: int) -> list[slice]:
        """The module's columns in runs for so many rows."""
        if self.rows.device.type == "cpu":
            length = max(1024, min(_LONGEST, _RUN // max(n_rows, 1)))
        else:
            length = max(1024, _RUN_ELSEWHERE // max(n_rows, 1))
        return [columns for part in self.module for columns in runs(part, length)]

    def _any(self, index: Tensor) -> bool:
        """Whether some number of these rows is not zero."""
        index = index.to(self.rows.device)
        return len(index) > 0 and any(
            bool(rows.index_select(0, index).any()) for _, rows in self._runs
        )

    def _weights(self, dual: Array) -> Tensor:
        dtype = torch.float64 if self._wide else self.gradient.dtype
        return torch.from_numpy(dual).to(self.rows.device, dtype, non_blocking=True)

    def _held(self, within: bool) -> bool:
        """Whether numbers that are `within` bounds or not stand; the block goes on in float64."""
        if self._wide or within:
            return True
        self._wide = True
        return False


def _upper(rows: Tensor) -> Tensor:
    """The products of the rows with each other, of which only the upper triangle counts."""
    if len(rows) <= _PANEL + _PANEL // 2:
        return rows @ rows.T
    products = rows.new_zeros(len(rows), len(rows))
    for start in range(0, len(rows), _PANEL):
        panel = slice(start, start + _PANEL)
        products[panel, start:] = rows[panel] @ rows[start:].T
    return products


def runs(part: slice, length: int) -> Iterator[slice]:
    """Runs of about equal length, none longer than `length`."""
    size = part.stop - part.start
    count = -(-size // length)
    for run in range(count):
        yield slice(part.start + size * run // count, part.start + size * (run + 1) // count)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """What runs inside on the tensor's device is in the dtypes that it is given."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _sum(terms: list[Tensor], *shape: int) -> Array:
    """The sum of the terms, each of this shape, in float64."""
    if not terms:
        return np.zeros(shape)
    total = terms[0] if len(terms) == 1 else torch.stack(terms).sum(0, dtype=torch.float64)
    return np.array(total.cpu().numpy(), dtype=np.float64)


def _multiplies_in_float32() -> bool:
    """Whether the CPU's float32 products keep float32's digits: torch may be told to drop some."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    precision = getattr(matmul, "fp32_precision", None)  # from torch 2.9 on
    if precision is not None:
        return precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"
