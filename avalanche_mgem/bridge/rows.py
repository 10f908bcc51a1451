"""The memory's gradients: a row for each group of samples, in as few passes as the model allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import one_of, positive_int
from avalanche_mgem.bridge.batches import (
    restored_running_statistics,
    write_batch_gradient,
    write_grouped_batch_gradients,
)
from avalanche_mgem.bridge.fields import Batch, joined, samples_of
from avalanche_mgem.bridge.memory import MemoryGroup
from avalanche_mgem.model.grouped import NotGroupedError, why_not_grouped
from avalanche_mgem.model.randomness import RandomStream

Passes = Literal["auto", "loop", "grouped"]
BatchNorm = Literal["update", "restore"]

# Inputs and outputs of linear layers that a pass may hold: enough samples to fill the products, few
# enough to stay in a processor's cache and to be little beside the rows.
_NUMBERS = 1 << 21
# How far a grouped row may be from the loop's, relative to its length, before the model is believed
# to do something that its modules do not show. Rounding stays well below.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Chunk:
    """Neighbouring groups of one size: which rows are theirs, and their samples group by group."""

    rows: slice
    batch: Batch
    size: int

    @property
    def groups(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def first(self, groups: int) -> Batch:
        """The samples of the first few groups."""
        return samples_of(self.batch, slice(0, groups * self.size), self.groups * self.size)


class MemoryRows:
    """Fills the rows with the gradients of the loss on the memory's groups.

    Args:
        passes: "loop": a forward and a backward pass for each group. "grouped": one for many, which
            takes a model of linear and pointwise layers; the rows are the same but for rounding
            (and for dropout, whose masks are others). "auto": grouped where it can be; the model is
            looked at, and a row is compared with the loop's once an experience.
        batch_size: None, or how many samples of each group to draw for a pass.
        refresh_every: iterations that the rows are used for.
        batchnorm: what becomes of running statistics.
        seed: of what the forward passes draw, and of the samples drawn.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        passes: Passes,
        batch_size: int | None,
        refresh_every: int,
        batchnorm: BatchNorm,
        seed: int,
    ) -> None:
        self.passes = one_of("memory_passes", passes, ("auto", "loop", "grouped"))
        if batch_size is not None:
            positive_int("memory_batch_size", batch_size)
        self.batch_size = batch_size
        self.refresh_every = positive_int("refresh_every", refresh_every)
        self.batchnorm = one_of("memory_batchnorm", batchnorm, ("update", "restore"))
        self._random = RandomStream(seed)
        self._draws = np.random.default_rng([seed, 1])
        self._groups: list[MemoryGroup] = []  # those behind the chunks
        self._chunks: list[_Chunk] = []
        self.start_experience()

    def start_experience(self) -> None:
        """Look at the model anew, and compute the rows anew."""
        self._grouped: bool | None = None  # None: to be found out
        self._written: object = None  # what the rows were computed from
        self._age = 0

    def fill(
        self, strategy: Any, groups: list[MemoryGroup], parameters: list[nn.Parameter], rows: Tensor
    ) -> bool:
        """Write the groups' gradients into rows [K, P]; return False where they still serve.

        Raises:
            ValueError: passes="grouped" and the model cannot; a group that batch normalisation
                cannot take; a memory_batch_size for a memory that cannot be indexed.
        """
        source = (rows.data_ptr(), [*map(id, groups)], [*map(id, parameters)])
        self._age += 1
        if source == self._written and self._age < self.refresh_every:
            return False
        self._written, self._age = None, 0  # nothing is written if what follows fails
        restore = self.batchnorm == "restore"
        statistics = restored_running_statistics(strategy.model) if restore else nullcontext()
        with statistics, self._own_random_numbers(strategy.model, parameters[0].device):
            if not self._fill_grouped(strategy, groups, parameters, rows):
                self._fill_one_by_one(strategy, groups, parameters, rows)
        self._written = source
        return True

    def _own_random_numbers(
        self, model: nn.Module, device: torch.device
    ) -> AbstractContextManager[None]:
        """For the forward passes; a model that takes groups together draws in dropout only."""
        quiet = self._grouped and not any(_active_dropout(model))
        return nullcontext() if quiet else self._random.active(device)

    def _fill_one_by_one(
        self, strategy: Any, groups: list[MemoryGroup], parameters: list[nn.Parameter], rows: Tensor
    ) -> None:
        for group, row in zip(groups, rows, strict=True):
            batch = self._drawn(group.batch, 1, group.size)
            with _explained_batch_norm():
                write_batch_gradient(strategy, batch, parameters, row)

    def _fill_grouped(
        self, strategy: Any, groups: list[MemoryGroup], parameters: list[nn.Parameter], rows: Tensor
    ) -> bool:
        """Fill the rows if the model can take groups together; return whether it can."""
        if self._grouped is False or self.passes == "loop":
            return False
        try:
            self._gather(groups, strategy.model)
            if self._grouped is None:
                self._grouped = self._takes_groups(strategy, parameters, rows)
            for chunk in self._chunks if self._grouped else ():
                batch = self._drawn(chunk.batch, chunk.groups, chunk.size)
                write_grouped_batch_gradients(strategy, batch, parameters, rows[chunk.rows])
        except NotGroupedError as error:
            if self.passes == "grouped":
                raise ValueError(f"memory_passes='grouped' cannot be: {error}") from error
            self._grouped = False
        return self._grouped

    def _takes_groups(self, strategy: Any, parameters: list[nn.Parameter], rows: Tensor) -> bool:
        """Compare a row of one pass for two groups with the row of a pass of its own."""
        reason = why_not_grouped(strategy.model, parameters)
        if reason is not None:
            raise NotGroupedError(reason)
        chunk = next((c for c in self._chunks if c.groups > 1), None)
        if chunk is None:
            return self.passes == "grouped"  # nothing to gain, nothing to compare
        together, alone = rows[chunk.rows][:2], torch.empty_like(rows[0])
        with _without_dropout(strategy.model):
            write_grouped_batch_gradients(strategy, chunk.first(2), parameters, together)
            write_batch_gradient(strategy, chunk.first(1), parameters, alone)
        if not float((together[0] - alone).norm()) <= _TOLERANCE * float(alone.norm()):
            raise NotGroupedError("the model's forward mixes samples, or uses parameters outside")
        return True

    def _gather(self, groups: list[MemoryGroup], model: nn.Module) -> None:
        """Join the groups' samples; the groups share their storage from then on."""
        if [*map(id, groups)] == [*map(id, self._groups)]:
            return
        known = {(c.rows.start, c.rows.stop): c for c in self._chunks}
        chunks = []
        sizes = [group.size for group in groups]
        for rows in _runs(sizes, samples_a_pass(model), self.batch_size):
            chunk, own = known.get((rows.start, rows.stop)), groups[rows]
            if chunk is None or [*map(id, own)] != [*map(id, self._groups[rows])]:
                chunk = _Chunk(rows, _shared(own), own[0].size)
            chunks.append(chunk)
        self._groups, self._chunks = groups, chunks

    def _drawn(self, batch: Batch, groups: int, size: int) -> Batch:
        """The samples to use of a batch of `groups` groups of `size` samples each."""
        if self.batch_size is None or self.batch_size >= size:
            return batch
        order = self._draws.random((groups, size)).argpartition(self.batch_size - 1, axis=1)
        picked = order[:, : self.batch_size] + size * np.arange(groups)[:, None]
        try:
            return samples_of(batch, torch.from_numpy(picked.ravel()), groups * size)
        except ValueError as error:
            raise ValueError(f"memory_batch_size cannot draw from this memory: {error}") from error


def samples_a_pass(model: nn.Module) -> int:
    """Return how many samples of one position each may go through the model at once."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    held = sum(layer.in_features + layer.out_features for layer in linears)
    return max(1, _NUMBERS // max(held, 1))


def _runs(sizes: Sequence[int], samples: int, drawn: int | None) -> Iterator[slice]:
    """Neighbours of one size, as many as give a pass so many samples, and at least one."""
    start = 0
    for size, same in groupby(sizes):
        stop = start + len(list(same))
        step = max(1, samples // min(size, drawn or size))
        for first in range(start, stop, step):
            yield slice(first, min(first + step, stop))
        start = stop


def _shared(groups: list[MemoryGroup]) -> Batch:
    """One batch of the groups' samples, of which each group's own batch becomes a part."""
    size = groups[0].size
    try:
        batch = joined([group.batch for group in groups])
        parts = [
            samples_of(batch, slice(at * size, (at + 1) * size), len(groups) * size)
            for at in range(len(groups))
        ]
    except ValueError as error:
        raise NotGroupedError(f"the memory cannot be joined: {error}") from error
    for group, part in zip(groups, parts, strict=True):
        group.batch = part
    return batch


def _active_dropout(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, nn.Dropout) and m.training)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout inside: two passes can be compared."""
    active = list(_active_dropout(model))
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


@contextmanager
def _explained_batch_norm() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "memory_groups: a group of one sample cannot pass batch normalisation in training "
            "mode; use fewer memory_groups, more patterns_per_experience or a memory_batch_size "
            "above 1"
        ) from error
