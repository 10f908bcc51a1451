"""What holds the rows still that may not move: in the gradient, or through an optimiser's step.

MIGU (arXiv 2406.17245, eq. 4-6) makes the gradients of masked rows zero after the backward pass.
That holds a row still under plain SGD only: momentum, the moments of Adam and weight decay go on
moving it. `RowKeeper` puts such rows back after a step, and `avalanche_mgem.model.step_hold` holds
them through every step that an optimiser takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from avalanche_mgem.model.stand_in import KeptRows
from avalanche_mgem.model.units import GatedLayer, Slices
from avalanche_mgem.restriction.rows import masked_positions


def mask_gradients(layers: Iterable[GatedLayer], kept: Mapping[str, Tensor]) -> None:
    """Make the gradients of the rows that are not kept zero, in place.

    Kept rows stay as they are to the bit; None stays None. A gradient that is infinite or NaN is
    NaN in a masked row, so that whoever looks for overflows still sees it.

    Args:
        layers: whose rows' gradients are masked; biases are left alone.
        kept: of each layer by its name, bool [n]; a layer that has none is left alone.
    """
    for rows in intersected(kept_rows_of(layers, kept)):
        if (gradient := rows.parameter.grad) is not None:
            mask = rows.slices.mask(rows.kept, gradient.ndim)
            gradient.detach().mul_(mask.to(gradient.dtype))


def kept_rows_of(layers: Iterable[GatedLayer], kept: Mapping[str, Tensor]) -> Iterator[KeptRows]:
    """Yield what is kept of the parameters' rows; layers without a mask are left out.

    Args:
        layers: that have the parameters.
        kept: of each layer's units by its name, bool of the layer's shape.
    """
    for layer in layers:
        if layer.name in kept:
            for rows in layer.rows:
                mask = rows.spread(kept[layer.name])
                yield KeptRows(rows.name, rows.parameter, Slices(rows.own_dims), mask)


def intersected(masks: Iterable[KeptRows]) -> list[KeptRows]:
    """Each parameter once, with the rows that are kept wherever it is used."""
    found: dict[tuple[int, Slices], KeptRows] = {}
    for rows in masks:
        key = id(rows.parameter), rows.slices
        found[key] = rows._replace(kept=rows.kept & found[key].kept) if key in found else rows
    return list(found.values())


class RowKeeper:
    """Holds masked rows still through an optimiser's step, to the bit (ours).

        keeper.save(layers, kept, optimizer)
        optimizer.step()
        keeper.restore()

    What is copied are the masked rows of the layers' weights and of the optimiser's state that has
    such rows (moments, momentum buffers), and only between the two calls. State that the step
    has made is put to zero in masked rows, which is where torch's optimisers begin; Rprop's step
    sizes begin at the learning rate and stay as made, which they do where the gradient is zero.
    Counters of steps belong to whole parameters and run on. State that is not of floating point,
    such as that of 8-bit optimisers, is left as the step has it.
    """

    def __init__(self) -> None:
        self._held: list[HeldRows] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_held": []}

    def save(
        self,
        layers: Iterable[GatedLayer],
        kept: Mapping[str, Tensor],
        optimizer: optim.Optimizer,
    ) -> None:
        """Copy the rows that are not kept; `kept` as in `mask_gradients`."""
        self._held = hold_copies(intersected(kept_rows_of(layers, kept)), [optimizer])

    def restore(self) -> None:
        """Put the rows back; without a `save` before, nothing."""
        held, self._held = self._held, []
        for rows in held:
            rows.restore()


def hold_copies(masks: Iterable[KeptRows], optimizers: Sequence[Any]) -> list[HeldRows]:
    """Copy the rows that are not kept, and what these optimisers' states have of them.

    Parameters without such rows are left out.
    """
    rows = list(masks)
    positions = masked_positions({i: row.kept.flatten() for i, row in enumerate(rows)})
    return [
        HeldRows(rows[i], index, optimizers) for i, index in positions.items() if index.numel() > 0
    ]


class HeldRows:
    """Copies of some rows of one parameter and of its optimisers' state."""

    def __init__(self, rows: KeptRows, index: Tensor, optimizers: Sequence[Any]) -> None:
        self._rows, self._index, self._optimizers = rows, index, optimizers
        self._copies = {
            key: slices.select(tensor, index) for key, tensor, slices in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[tuple[int, str], Tensor, Slices]]:
        """What has such rows and where: state by optimiser and key, and last the parameter.

        SAM lets a parameter be what it keeps of it.
        """
        parameter = self._rows.parameter
        for number, optimizer in enumerate(self._optimizers):
            for key, tensor, slices in _state_rows(self._rows, _state_of(parameter, optimizer)):
                yield (number, key), tensor, slices
        yield (-1, ""), parameter.detach(), self._rows.slices

    def have_moved(self) -> bool:
        """Whether the parameter has changed in these rows."""
        now = self._rows.slices.select(self._rows.parameter.detach(), self._index)
        return not torch.equal(now, self._copies[-1, ""])

    def restore(self) -> None:
        """Put them back; state that is new is zero there, but for Rprop's step sizes."""
        for key, tensor, slices in self._tensors():
            if key in self._copies:
                slices.copy(tensor, self._index, self._copies[key])
            elif key[1] != "step_size":
                slices.fill(tensor, self._index, 0.0)


class HeldWhole:
    """Copies of one parameter and of what its optimisers' state has of its shape."""

    def __init__(self, parameter: nn.Parameter, optimizers: Sequence[Any]) -> None:
        self._parameter, self._optimizers = parameter, optimizers
        self._copies = {key: tensor.clone() for key, tensor in self._tensors()}

    def _tensors(self) -> Iterator[tuple[tuple[int, str], Tensor]]:
        for number, optimizer in enumerate(self._optimizers):
            for key, value in _state_of(self._parameter, optimizer).items():
                if isinstance(value, Tensor) and value.shape == self._parameter.shape:
                    yield (number, key), value
        yield (-1, ""), self._parameter.detach()

    def have_moved(self) -> bool:
        """Whether the parameter has changed."""
        return not torch.equal(self._parameter.detach(), self._copies[-1, ""])

    def restore(self) -> None:
        """Put them back; state that is new stays."""
        for key, tensor in self._tensors():
            if key in self._copies:
                tensor.copy_(self._copies[key])


def _state_of(parameter: nn.Parameter, optimizer: Any) -> Mapping[str, object]:
    """The optimiser's state of one parameter; what LBFGS keeps there is of all together."""
    state: Mapping[Any, Any] = getattr(optimizer, "state", {})
    found = {} if isinstance(optimizer, optim.LBFGS) else state.get(parameter, {})
    return found if isinstance(found, Mapping) else {}


def _state_rows(
    rows: KeptRows, state: Mapping[str, object]
) -> Iterator[tuple[str, Tensor, Slices]]:
    """The optimiser's state, by its key, that has rows as the parameter has, and where they lie.

    A row may be one number: Adafactor's are, [n, 1] (torch) or [n] (transformers). Adafactor's
    columns are all rows' and no part. A vector of all of the parameter's numbers (Prodigy) has
    rows too.
    """
    shape, dims = rows.parameter.shape, rows.slices.dims
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        is_whole = value.ndim == 1 < len(shape) and value.numel() == rows.parameter.numel()
        if is_whole and value.is_contiguous() and not key.endswith(("_row", "_col")):
            yield key, value.view(shape), rows.slices
            continue
        if value.ndim == len(shape) and all(value.shape[dim] == shape[dim] for dim in dims):
            yield key, value, rows.slices
        # A vector may fit both ways, so its name says which dimension it is the mean over.
        without = len(shape) - (1 if key.endswith("_row") else 2 if key.endswith("_col") else 0)
        if without not in dims and value.shape == (*shape[:without], *shape[without + 1 :]):
            yield key, value, Slices(tuple(dim - (without < dim) for dim in dims))
