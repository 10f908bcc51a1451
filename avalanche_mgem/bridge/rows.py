"""The memory's gradients: a row for each group of samples, in as few passes as the model allows.

Several processes share the passes: each takes a part of every group, and the rows are averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avalanche_mgem.arguments import one_of, positive_int
from avalanche_mgem.bridge.batches import (
    add_batch_gradient,
    evaluated_normalization,
    own_gradients,
    restored_running_statistics,
    write_batch_gradient,
    write_grouped_batch_gradients,
)
from avalanche_mgem.bridge.chunks import Chunks
from avalanche_mgem.bridge.distributed import average_rows, is_same_memory, own_part
from avalanche_mgem.bridge.fields import Batch, MemoryFormat, in_format, samples_of
from avalanche_mgem.bridge.memory import MemoryGroup
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.bf16 import has_bf16_units, warn_of_slow_bf16
from avalanche_mgem.model.distributed import first_of_all, n_processes
from avalanche_mgem.model.gradients import rounded_once
from avalanche_mgem.model.grouped import NotGroupedError, why_not_grouped
from avalanche_mgem.model.randomness import RandomStream, fingerprint, unmoved_torch_states
from avalanche_mgem.model.walking import modules_of

_LOG = logging.getLogger(__name__)

MemoryPrecision = Literal["float32", "bf16"]
Passes = Literal["auto", "loop", "grouped"]
BatchNorm = Literal["update", "restore", "evaluate"]

# What becomes of normalisation by running statistics, by memory_batchnorm.
_NORMS: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "update": lambda _: nullcontext(),
    "restore": restored_running_statistics,
    "evaluate": evaluated_normalization,
}

# How far a grouped row may be from the loop's, relative to its length, before the model is believed
# to do something that its modules do not show. Rounding stays well below.
_TOLERANCE = 1e-5


class MemoryRows:
    """Fills the rows with the gradients of the loss on the memory's groups.

    In several processes whose memories are the same, each computes the gradient on its own part of
    every group's samples (of two for each process at least, else on all of them), and a row is the
    mean over the processes, weighted by their numbers of samples: that of the group, where a loss
    is a mean over samples and nothing mixes them. Processes whose memories differ, because each has
    data of its own, compute the gradients on all they have; the mean is the same.

    Args:
        passes: "loop": a forward and a backward pass for each group. "grouped": one for many, which
            takes a model of linear and pointwise layers; the rows are the same but for rounding
            (and for dropout, whose masks are others). "auto": grouped where it can be: the model is
            looked at, and when its parts change the first and the last row of a pass are compared
            with the loop's, which takes three passes more.
        batch_size: None, or how many samples of each group to draw for a pass.
        refresh_every: iterations that the rows are used for.
        batchnorm: what becomes of running statistics.
        precision: "bf16": forward and backward passes by torch's autocast, in bfloat16, where the
            device has units for it, else as in "float32"; rows in bfloat16 are then written as
            such, each rounded when it is finished.
        memory_format: "channels_last": batches of images are in that layout.
        seed: of what the forward passes draw, and of the samples drawn.

    Raises:
        ValueError: an argument out of range.
    """

    # Of checkpoints that are older.
    precision: MemoryPrecision = "float32"
    memory_format: MemoryFormat = "preserve"

    def __init__(
        self,
        *,
        passes: Passes,
        batch_size: int | None,
        refresh_every: int,
        batchnorm: BatchNorm,
        precision: MemoryPrecision = "float32",
        memory_format: MemoryFormat = "preserve",
        seed: int,
    ) -> None:
        self.passes = one_of("memory_passes", passes, ("auto", "loop", "grouped"))
        if batch_size is not None:
            positive_int("memory_batch_size", batch_size)
        self.batch_size = batch_size
        self.refresh_every = positive_int("refresh_every", refresh_every)
        self.batchnorm = one_of("memory_batchnorm", batchnorm, tuple(_NORMS))
        one_of("memory_precision", precision, ("float32", "bf16"))
        one_of("memory_format", memory_format, ("preserve", "channels_last"))
        self.precision, self.memory_format = precision, memory_format
        self._random = RandomStream(seed)
        self._draws = np.random.default_rng([seed, 1])
        self._chunks = Chunks()
        self._losses: list[Tensor] = []  # of the rows
        self._looked_at: object = None  # the model and the like that the next are of
        self._grouped = False
        self._draws_nothing: bool | None = None  # but by dropout; None: not known yet
        self._has_dropout = False  # that is active
        self.start_experience()

    def draws_from(self, size: int) -> bool:
        """Whether samples are drawn from groups of so many."""
        return self.batch_size is not None and self.batch_size < size

    @property
    def half(self) -> bool:
        """Whether rows are kept in bfloat16."""
        return self.precision == "bf16"

    def half_passes(self, strategy: Strategy) -> bool:
        """Whether the passes are in bfloat16: where the rows are, and there are units for it."""
        return self.half and has_bf16_units(strategy.device)

    def start_experience(self) -> None:
        """Compute the rows anew; look at the model anew if it has changed."""
        self._written: object = None  # what the rows were computed from
        self._age = 0
        self._divides: bool | None = None  # groups among processes; None: not known yet

    def __getstate__(self) -> dict[str, Any]:
        # Both are of objects by their identity, which a copy does not share.
        return {**vars(self), "_written": None, "_looked_at": None, "_losses": []}

    def state(self) -> dict[str, Any]:
        """Return where the random numbers stand, of Python's own types and tensors."""
        return {"random": self._random.state(), "draws": self._draws.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Let the random numbers stand where those of a `state` stood."""
        self._random.restore(state["random"])
        self._draws.bit_generator.state = state["draws"]

    def loss(self, weights: Tensor) -> Tensor:
        """Return sum_k w_k L_k of the losses L_k that rows are the gradients of, float64, [].

        Computed with the rows, at no further pass. weights: w, [K], equal in groups that go through
        the model together.
        """
        losses = torch.stack([loss.double() for loss in self._losses])
        return losses @ weights.to(losses.device, torch.float64, non_blocking=True)

    def fill(
        self,
        strategy: Strategy,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        rows: Tensor,
    ) -> bool:
        """Write the groups' gradients into rows [K, P]; return False where they still serve.

        Raises:
            ValueError: passes="grouped" and the model cannot; a group that batch normalisation
                cannot take; a memory_batch_size for a memory that cannot be indexed; other groups
                in another process.
        """
        source = (rows.data_ptr(), [*map(id, groups)], [*map(id, parameters)])
        self._age += 1
        if source == self._written and self._age < self.refresh_every:
            return False
        self._written, self._age = None, 0  # nothing is written if what follows fails
        if self._divides is None:
            same = is_same_memory([group.batch for group in groups])
            self._divides = same and n_processes() > 1
            self._draws = first_of_all(self._draws)
        statistics = _NORMS[self.batchnorm](strategy.model)
        if self._looked_at is None and self.half:
            warn_of_slow_bf16("memory_precision='bf16'", strategy.device)
        self._look_at(strategy, groups, parameters, rows)
        with statistics, self._random_numbers(parameters[0].device):
            samples = self._fill_grouped(strategy, groups, parameters, rows)
            if samples is None:
                samples = self._fill_one_by_one(strategy, groups, parameters, rows)
        self._average_losses(samples)
        self._written = source
        return True

    def _average_losses(self, samples: list[int]) -> None:
        """Make the losses those of all processes, as the rows are."""
        if n_processes() > 1:
            losses = torch.stack(self._losses)[:, None]
            average_rows(losses, samples)
            self._losses = list(losses[:, 0])

    @contextmanager
    def _random_numbers(self, device: torch.device) -> Iterator[None]:
        """Let the forward passes draw from random states of our own, if they draw at all.

        Whether they do is seen at the first of them. Later on a look at torch's states is enough,
        which takes a fraction of the time.
        """
        if self._draws_nothing and not self._has_dropout:
            with unmoved_torch_states(device) as moved:
                yield
            self._draws_nothing = not moved
            return
        with self._random.active(device):
            before = fingerprint(device) if self._draws_nothing is None else b""
            yield
            if self._draws_nothing is None:
                self._draws_nothing = fingerprint(device) == before

    def _fill_one_by_one(
        self,
        strategy: Strategy,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        rows: Tensor,
    ) -> list[int]:
        """Fill the rows; return of how many samples each is."""
        samples, self._losses = list[int](), []
        rounds, half = rows.dtype == torch.bfloat16, self.half_passes(strategy)
        with own_gradients(strategy.model), _explained_batch_norm():
            for group, row in zip(groups, rows, strict=True):
                batch, size = self._drawn(group.batch, 1, group.size)
                with rounded_once(row) as total:
                    loss = add_batch_gradient(strategy, batch, parameters, total, half=half)
                    if rounds:
                        average_rows(total[None], [size])
                self._losses.append(loss)
                samples.append(size)
        if not rounds:
            average_rows(rows, samples)
        return samples

    def _fill_grouped(
        self,
        strategy: Strategy,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        rows: Tensor,
    ) -> list[int] | None:
        """Fill the rows if the model can take groups together; None if it cannot."""
        if not self._grouped:
            return None
        sizes: list[int] = []
        self._losses, half = [], self.half_passes(strategy)
        try:
            for chunk in self._chunks.of(groups, strategy.model, self.batch_size):
                batch, size = self._drawn(chunk.batch, chunk.groups, chunk.size)
                samples, own = chunk.groups * size, rows[chunk.rows]
                loss = write_grouped_batch_gradients(
                    strategy, batch, samples, parameters, own, half=half
                )
                self._losses += [loss / chunk.groups] * chunk.groups
                sizes += [size] * chunk.groups
        except NotGroupedError as error:
            self._refuse(error)
            return None
        average_rows(rows, sizes)
        return sizes

    def _look_at(
        self,
        strategy: Strategy,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        rows: Tensor,
    ) -> None:
        """Find out whether the model takes groups together, once for each state of the model."""
        modules = [(id(m), m.training) for m in modules_of(strategy.model)]
        looked_at = (modules, id(strategy), min(len(groups), 2))
        if self._looked_at == looked_at:
            return
        self._looked_at, self._grouped, self._draws_nothing = looked_at, False, None
        self._has_dropout = any(_active_dropout(strategy.model))
        if self.passes == "loop":
            return
        try:
            # Not of the rows' own random numbers: a run that is resumed looks once more.
            with RandomStream(0).active(parameters[0].device):
                self._grouped = self._takes_groups(strategy, groups, parameters, rows)
            if self._grouped:
                _LOG.info("memory gradients: one pass for many of %d groups", len(groups))
        except NotGroupedError as error:
            self._refuse(error)

    def _refuse(self, error: NotGroupedError) -> None:
        self._grouped, self._draws_nothing = False, None
        _LOG.info("memory gradients: a pass for each group, because %s", error)
        if self.passes == "grouped":
            self._looked_at = None
            raise ValueError(f"memory_passes='grouped' cannot be: {error}") from error

    def _takes_groups(
        self,
        strategy: Strategy,
        groups: list[MemoryGroup],
        parameters: list[nn.Parameter],
        rows: Tensor,
    ) -> bool:
        """Compare the first and the last row of one pass with those of passes of their own."""
        reason = why_not_grouped(strategy.model, list(strategy.model.parameters()))
        if reason is not None:
            raise NotGroupedError(reason)
        chunks = self._chunks.of(groups, strategy.model, self.batch_size)
        chunk = max(chunks, key=lambda chunk: chunk.groups)
        if chunk.groups < 2:
            return self.passes == "grouped"  # nothing to gain, nothing to compare
        together, batch = rows[chunk.rows], chunk.batch
        if rows.dtype == torch.bfloat16:  # whose digits are too few to compare
            together = rows.new_empty((2, rows.shape[1]), dtype=torch.float32)
            batch = chunk.ends()
        before = fingerprint(parameters[0].device)
        samples = len(together) * chunk.size
        with _without_dropout(strategy.model):
            try:
                write_grouped_batch_gradients(strategy, batch, samples, parameters, together)
            except Exception as error:  # whatever the model does not bear: the loop has the word
                raise NotGroupedError(f"one pass for many groups failed: {error}") from error
            self._draws_nothing = fingerprint(parameters[0].device) == before
            for own, row in (
                (groups[chunk.rows][0], together[0]),
                (groups[chunk.rows][-1], together[-1]),
            ):
                _require_same(strategy, own, parameters, row)
        return True

    def _drawn(self, batch: Batch, groups: int, size: int) -> tuple[Batch, int]:
        """The samples to use of a batch of `groups` groups of `size` samples, and how many each."""
        draws = self.draws_from(size)
        if not (draws or self._divides):
            return batch, size
        picked = self._picked(groups, size)
        part = own_part(picked.shape[1]) if self._divides else None
        if part is None and not draws:
            return batch, size
        picked = picked[:, part or slice(None)]
        chosen = torch.from_numpy((picked + size * np.arange(groups)[:, None]).ravel())
        try:
            drawn = samples_of(batch, chosen, groups * size)
            return in_format(drawn, self.memory_format), picked.shape[1]
        except ValueError as error:
            if not draws:
                return batch, size  # what cannot be divided is everybody's
            raise ValueError(f"memory_batch_size cannot draw from this memory: {error}") from error

    def _picked(self, groups: int, size: int) -> NDArray[np.int64]:
        """Which samples of each group are used, in whatever process, [groups, samples]."""
        if self.batch_size is None or self.batch_size >= size:
            return np.broadcast_to(np.arange(size), (groups, size))
        order = self._draws.random((groups, size)).argpartition(self.batch_size - 1, axis=1)
        return order[:, : self.batch_size]


def _require_same(
    strategy: Strategy, group: MemoryGroup, parameters: list[nn.Parameter], row: Tensor
) -> None:
    """Raise NotGroupedError unless a pass of its own gives the group's row."""
    alone = torch.empty_like(row)
    write_batch_gradient(strategy, group.batch, parameters, alone)
    length = float(alone.norm())
    if not (length > 0.0 and float((row - alone).norm()) <= _TOLERANCE * length):
        raise NotGroupedError("the model's forward mixes samples, or uses parameters outside")


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
