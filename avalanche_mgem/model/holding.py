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

from avalanche_mgem.model.layers import GatedLayer, Rows
from avalanche_mgem.restriction.rows import masked_positions


def mask_gradients(layers: Iterable[GatedLayer], kept: Mapping[str, Tensor]) -> None:
    """Make the gradients of the rows that are not kept zero, in place.

    Kept rows stay as they are to the bit; None stays None. A gradient that is infinite or NaN is
    NaN in a masked row, so that whoever looks for overflows still sees it.

    Args:
        layers: whose rows' gradients are masked; biases are left alone.
        kept: of each layer by its name, bool [n]; a layer that has none is left alone.
    """
    for rows, mask in rows_and(layers, kept):
        if (gradient := rows.parameter.grad) is not None:
            shape = [-1 if dim == rows.dim else 1 for dim in range(gradient.ndim)]
            gradient.detach().mul_(mask.to(gradient.dtype).view(shape))


def rows_and(
    layers: Iterable[GatedLayer], values: Mapping[str, Tensor]
) -> Iterator[tuple[Rows, Tensor]]:
    """Each layer's rows with the layer's value; layers that have none are left out."""
    for layer in layers:
        if layer.name in values:
            yield from ((rows, values[layer.name]) for rows in layer.rows)


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
        self._held: list[KeptRows] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_held": []}

    def save(
        self,
        layers: Iterable[GatedLayer],
        kept: Mapping[str, Tensor],
        optimizer: optim.Optimizer,
    ) -> None:
        """Copy the rows that are not kept; `kept` as in `mask_gradients`."""
        self._held = keep_rows(list(rows_and(layers, kept)), [optimizer])

    def restore(self) -> None:
        """Put the rows back; without a `save` before, nothing."""
        held, self._held = self._held, []
        for rows in held:
            rows.restore()


def keep_rows(masks: Sequence[tuple[Rows, Tensor]], optimizers: Sequence[Any]) -> list[KeptRows]:
    """Copy the rows whose mask, bool [n], is False, and what these optimisers' states have of them.

    Parameters without such rows are left out.
    """
    positions = masked_positions({i: mask for i, (_, mask) in enumerate(masks)})
    return [
        KeptRows(masks[i][0], index, optimizers)
        for i, index in positions.items()
        if index.numel() > 0
    ]


class KeptRows:
    """Copies of some rows of one parameter and of its optimisers' state."""

    def __init__(self, rows: Rows, index: Tensor, optimizers: Sequence[Any]) -> None:
        self._rows, self._index, self._optimizers = rows, index, optimizers
        self._copies = {
            key: tensor.index_select(dim, index) for key, tensor, dim in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[tuple[int, str], Tensor, int]]:
        """What has such rows and where: state by optimiser and key, and last the parameter.

        SAM lets a parameter be what it keeps of it.
        """
        for number, optimizer in enumerate(self._optimizers):
            state = _state_of(self._parameter, optimizer)
            for key, tensor, dim in _state_rows(self._rows, state):
                yield (number, key), tensor, dim
        yield (-1, ""), self._parameter.detach(), self._rows.dim

    @property
    def _parameter(self) -> nn.Parameter:
        return self._rows.parameter

    def have_moved(self) -> bool:
        """Whether the parameter has changed in these rows."""
        now = self._parameter.detach().index_select(self._rows.dim, self._index)
        return not torch.equal(now, self._copies[-1, ""])

    def restore(self) -> None:
        """Put them back; state that is new is zero there, but for Rprop's step sizes."""
        for key, tensor, dim in self._tensors():
            if key in self._copies:
                tensor.index_copy_(dim, self._index, self._copies[key])
            elif key[1] != "step_size":
                tensor.index_fill_(dim, self._index, 0.0)


class KeptWhole:
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


def _state_rows(rows: Rows, state: Mapping[str, object]) -> Iterator[tuple[str, Tensor, int]]:
    """The optimiser's state, by its key, that has rows as the parameter has, and where they lie.

    A row may be one number: Adafactor's are, [n, 1] (torch) or [n] (transformers). Adafactor's
    columns are all rows' and no part. A vector of all of the parameter's numbers (Prodigy) has
    rows too.
    """
    shape = rows.parameter.shape
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        is_whole = value.ndim == 1 < len(shape) and value.numel() == rows.parameter.numel()
        if is_whole and value.is_contiguous() and not key.endswith(("_row", "_col")):
            yield key, value.view(shape), rows.dim
            continue
        if value.ndim == len(shape) and value.shape[rows.dim] == shape[rows.dim]:
            yield key, value, rows.dim
        # A vector may fit both ways, so its name says which dimension it is the mean over.
        without = len(shape) - (1 if key.endswith("_row") else 2 if key.endswith("_col") else 0)
        if without != rows.dim and value.shape == (*shape[:without], *shape[without + 1 :]):
            yield key, value, rows.dim - (without < rows.dim)
