"""An optimiser's step of the kept rows alone.

Kept rows are copied, with their gradient and their state, into small parameters that an optimiser
of the same class and the same settings steps, and written back. So a step takes about as long as a
plain one or less, masked rows are never touched, and no parameter ever has a strange shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from avalanche_mgem.model.element_wise import CACHED, like
from avalanche_mgem.model.units import Slices
from avalanche_mgem.restriction.rows import masked_positions

_Group = dict[str, Any]
_State = defaultdict[Tensor, Any]


class KeptRows(NamedTuple):
    """What is kept of a parameter's rows: of its slices along some dimensions, bool [sizes]."""

    name: str
    parameter: nn.Parameter
    slices: Slices
    kept: Tensor

    @property
    def row_size(self) -> int:
        """The number of elements in a row."""
        return self.parameter.numel() // max(self.kept.numel(), 1)

    def on_its_device(self) -> KeptRows:
        """Return it with the mask where the parameter is."""
        return self._replace(kept=self.kept.to(self.parameter.device))


def is_mostly_kept(rows: KeptRows) -> bool:
    """Whether it takes less time to step a parameter whole and put back what is masked.

    A kept row is copied seven times to step kept rows alone (of AdamW: it, its gradient and its
    state, and back again), a masked one six times to put it back, and stepped for nothing. With
    AdamW on an MLP of 1000 units (one thread of an AMD EPYC) they take as long where two thirds are
    kept. Small parameters share a step of kept rows, and to count on an accelerator is to wait.
    """
    if rows.kept.device.type != "cpu" or rows.parameter.numel() < CACHED // 4:
        return False
    n, kept = rows.kept.numel(), int(rows.kept.sum())
    return 2 * n < 3 * kept < 3 * n


def step_kept_rows(
    optimizer: optim.Optimizer, masks: list[KeptRows], still: Container[int]
) -> optim.Optimizer:
    """Step the kept rows of these parameters; return an optimiser that steps all others.

    An optimiser that is held by `is_element_wise` to step them alone. On a CPU they are stepped a
    piece at a time, which stays in the cache; an accelerator wants few launches.

    Args:
        optimizer: whose step it is. What it returns stands in for it, with the same state.
        masks: each gated parameter once, with its kept rows.
        still: the ids of parameters that do not step.
    """
    parts = {id(part.rows.parameter): part for part in _parts_to_step(masks, optimizer)}
    found = [
        (group, parts[id(p)])
        for group in optimizer.param_groups
        for p in group["params"]
        if id(p) in parts
    ]
    for batch in _batches(found):
        _step(optimizer, batch)
    rest = [
        [p for p in group["params"] if id(p) not in parts and id(p) not in still]
        for group in optimizer.param_groups
    ]
    groups = zip(optimizer.param_groups, rest, strict=True)
    return like(optimizer, optimizer.state, [{**group, "params": few} for group, few in groups])


def _parts_to_step(masks: list[KeptRows], optimizer: optim.Optimizer) -> Iterator[_Part]:
    """Each parameter with a gradient and masked rows, with the positions of its kept rows."""
    stepped = [rows for rows in masks if rows.parameter.grad is not None]
    kept = masked_positions({i: ~rows.kept.flatten() for i, rows in enumerate(stepped)})
    for i, rows in enumerate(stepped):
        if len(kept[i]) < rows.kept.numel():
            yield _Part(rows, kept[i], dict(optimizer.state.get(rows.parameter, {})))


def _batches(found: list[tuple[_Group, _Part]]) -> Iterator[list[tuple[_Group, _Part]]]:
    """What is stepped together."""
    if any(part.index.device.type != "cpu" for _, part in found):
        yield found
        return
    batch: list[tuple[_Group, _Part]] = []
    room = CACHED
    for group, piece in ((group, piece) for group, part in found for piece in part.pieces()):
        if batch and piece.size > room:
            yield batch
            batch, room = [], CACHED
        batch.append((group, piece))
        room -= piece.size
    if batch:
        yield batch


def _step(optimizer: optim.Optimizer, batch: list[tuple[_Group, _Part]]) -> None:
    """Step these rows and write them back, with their state."""
    state: _State = defaultdict(dict)
    groups: dict[int, _Group] = {}
    shown = []
    for group, part in batch:
        parameter = part.parameter()
        shown.append(parameter)
        groups.setdefault(id(group), {**group, "params": []})["params"].append(parameter)
        if part.before:
            state[parameter] = part.state()
    type(optimizer).step.__wrapped__(like(optimizer, state, [*groups.values()]))  # type: ignore[attr-defined]
    for (_, part), parameter in zip(batch, shown, strict=True):
        if stepped := state.get(parameter):
            part.put_state(optimizer.state[part.rows.parameter], stepped)
        part.put(parameter)


@dataclass(frozen=True)
class _Part:
    """Some kept rows of one parameter, and its optimiser's state as it was before the step."""

    rows: KeptRows
    index: Tensor
    before: dict[str, Any]

    @property
    def size(self) -> int:
        """The number of elements in these rows."""
        return len(self.index) * self.rows.row_size

    def pieces(self) -> Iterator[_Part]:
        """Cut it into parts that fit into a cache."""
        for index in torch.split(self.index, max(CACHED // max(self.rows.row_size, 1), 1)):
            yield replace(self, index=index)

    def parameter(self) -> nn.Parameter:
        """Return a copy of the rows, as a parameter with a gradient."""
        whole = self.rows.parameter
        parameter = nn.Parameter(self._select(whole.detach()), requires_grad=whole.requires_grad)
        if whole.grad is not None:
            parameter.grad = self._select(whole.grad)
        return parameter

    def state(self) -> dict[str, Any]:
        """Return a copy of their state."""
        tensors = {key: value for key, value in self.before.items() if isinstance(value, Tensor)}
        copies = {k: self._select(t) if t.ndim > 0 else t.clone() for k, t in tensors.items()}
        return {**self.before, **copies}

    def _select(self, tensor: Tensor) -> Tensor:
        # Where nothing is kept, a row steps for nothing: counters go on and state is made.
        index = self.index if len(self.index) > 0 else self.index.new_zeros(1)
        return self.rows.slices.select(tensor, index)

    def _write(self, whole: Tensor, stepped: Tensor) -> None:
        slices = self.rows.slices
        slices.copy(whole, self.index, slices.first(stepped, len(self.index)))

    def put(self, stepped: Tensor) -> None:
        """Write the rows back."""
        self._write(self.rows.parameter.detach(), stepped.detach())

    def put_state(self, state: dict[str, Any], stepped: Mapping[str, Any]) -> None:
        """Write their state back; in masked rows new state is zero, Rprop's step sizes as made."""
        for key, value in stepped.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                state[key] = value
                continue
            if not isinstance(state.get(key), Tensor):
                whole = self.rows.parameter
                state[key] = torch.zeros_like(whole, dtype=value.dtype, requires_grad=False)
                if key == "step_size":
                    state[key] += value.flatten()[0]
            self._write(state[key], value)
