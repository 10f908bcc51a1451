"""The memory's groups, joined into what goes through a model at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from avalanche_mgem.bridge.fields import Batch, joined, samples_of
from avalanche_mgem.bridge.memory import MemoryGroup
from avalanche_mgem.model.grouped import NotGroupedError

# Inputs and outputs of linear layers that a pass may hold: enough samples to fill the products, few
# enough to stay in a processor's cache and to be little beside the rows.
_NUMBERS = 1 << 21


@dataclass(frozen=True)
class Chunk:
    """Neighbouring groups of one size and share: their rows, and their samples group by group."""

    rows: slice
    batch: Batch
    size: int

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.rows.stop - self.rows.start)

    def ends(self) -> Batch:
        """Return the samples of the first and of the last group."""
        samples = self.groups * self.size
        chosen = torch.arange(self.size)
        return samples_of(self.batch, torch.cat((chosen, chosen + samples - self.size)), samples)


class Chunks:
    """The chunks of the groups that it was last given; no part of a copy or a pickle."""

    def __init__(self) -> None:
        self._groups: list[MemoryGroup] = []
        self._chunks: list[Chunk] = []

    def __getstate__(self) -> dict[str, object]:
        return vars(Chunks())

    def of(self, groups: list[MemoryGroup], model: nn.Module, drawn: int | None) -> list[Chunk]:
        """Return the groups as chunks; groups of a chunk share their storage from then on.

        drawn: how many samples of a group are used for a pass; None: all.

        Raises:
            NotGroupedError: the groups' batches cannot be joined.
        """
        if [*map(id, groups)] != [*map(id, self._groups)]:
            known = {(c.rows.start, c.rows.stop): c for c in self._chunks}
            chunks = []
            for rows in _runs(groups, samples_a_pass(model), drawn):
                chunk, own = known.get((rows.start, rows.stop)), groups[rows]
                if chunk is None or [*map(id, own)] != [*map(id, self._groups[rows])]:
                    chunk = Chunk(rows, _shared(own), own[0].size)
                chunks.append(chunk)
            self._groups, self._chunks = groups, chunks
        return self._chunks


def samples_a_pass(model: nn.Module) -> int:
    """Return how many samples of one position each may go through the model at once."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    held = sum(layer.in_features + layer.out_features for layer in linears)
    return max(1, _NUMBERS // max(held, 1))


def _runs(groups: Sequence[MemoryGroup], samples: int, drawn: int | None) -> Iterator[slice]:
    """Neighbours of one size and share, as many as give a pass so many samples; at least one."""
    start = 0
    for (size, _), same in groupby((group.size, group.share) for group in groups):
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
