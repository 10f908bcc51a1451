"""What holds the rows still that may not move: in the gradient, or through any optimiser's step.

MIGU (arXiv 2406.17245, eq. 4-6) makes the gradients of masked rows zero after the backward pass.
That holds a row still under plain SGD only: momentum, the moments of Adam and weight decay go on
moving it. Two ways of ours hold it still under other optimisers too: `RowKeeper` puts the rows back
after the step, `kept_rows_only` shows the optimiser no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

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
    for rows, mask in _rows_and(layers, kept):
        if (gradient := rows.parameter.grad) is not None:
            shape = [-1 if dim == rows.dim else 1 for dim in range(gradient.ndim)]
            gradient.detach().mul_(mask.to(gradient.dtype).view(shape))


def _rows_and(
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
        self._held: list[_Held] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_held": []}

    def save(
        self,
        layers: Iterable[GatedLayer],
        kept: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Copy the rows that are not kept; `kept` as in `mask_gradients`."""
        layers = [layer for layer in layers if layer.name in kept]
        positions = masked_positions({layer.name: kept[layer.name] for layer in layers})
        self._held = [
            _Held(rows, index, optimizer)
            for rows, index in _rows_and(layers, positions)
            if index.numel() > 0
        ]

    def restore(self) -> None:
        """Put the rows back; without a `save` before, nothing."""
        held, self._held = self._held, []
        for rows in held:
            rows.restore()


class _Held:
    """The masked rows of one parameter and of its optimiser's state."""

    def __init__(self, rows: Rows, index: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self._rows, self._index, self._optimizer = rows, index, optimizer
        self._copies = {
            key: tensor.index_select(rows.dim, index) for key, tensor in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[str | None, Tensor]]:
        """What has such rows: the parameter, under None, and its state by the optimiser's key."""
        yield None, self._rows.parameter.detach()
        yield from _state_rows(self._rows, self._optimizer)

    def restore(self) -> None:
        for key, tensor in self._tensors():
            if key in self._copies:
                tensor.index_copy_(self._rows.dim, self._index, self._copies[key])
            elif key != "step_size":
                tensor.index_fill_(self._rows.dim, self._index, 0.0)


def _state_rows(rows: Rows, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's state, by its key, that has a row for each of the parameter's.

    A row may be one number, as Adafactor's are; Adafactor's columns are all rows' and no part.
    """
    shape = rows.parameter.shape
    # `get`, because to look a parameter up by its key makes an entry.
    for key, state in optimizer.state.get(rows.parameter, {}).items():
        fits = isinstance(state, Tensor) and state.is_floating_point() and state.ndim == len(shape)
        if fits and state.shape[rows.dim] == shape[rows.dim]:
            yield key, state


@contextmanager
def kept_rows_only(
    layers: Iterable[GatedLayer], kept: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Show an optimiser the kept rows only, for the length of a step (ours).

        with kept_rows_only(layers, kept, optimizer):
            optimizer.step()

    Inside, the gated parameters, their gradients and their state are tensors of the kept rows, so
    that a step takes less time than a plain one; afterwards, an error or not, they are the whole
    ones again, and the masked rows have not been touched. An optimiser that treats every element
    alike moves the kept rows as it would have, to the bit but for kernels that round the last few
    elements of a tensor differently (torch's fused AdamW on a CPU). State that is made inside is
    as in `RowKeeper`. Gradients inside are copies: what is done to them is lost.

    Raises:
        ValueError: the optimiser has state of some other shape (Adafactor, 8-bit optimisers), for
            which `RowKeeper` is there.
    """
    held: list[_KeptOnly] = []
    try:
        for rows, index in _rows_to_step(layers, kept):
            held.append(_KeptOnly(rows, index, optimizer))
        yield
    finally:
        for one in reversed(held):
            one.restore()


def _rows_to_step(
    layers: Iterable[GatedLayer], kept: Mapping[str, Tensor]
) -> Iterator[tuple[Rows, Tensor]]:
    """Each parameter with a gradient and masked rows, once, with the positions of its kept rows."""
    found: dict[tuple[int, int], Rows] = {}
    masks: dict[tuple[int, int], Tensor] = {}
    for rows, mask in _rows_and(layers, kept):
        if rows.parameter.grad is not None:
            key = id(rows.parameter), rows.dim
            masks[key] = masks[key] & mask if key in found else mask
            found[key] = rows
    positions = masked_positions({key: ~mask for key, mask in masks.items()})
    for key, index in positions.items():
        if len(index) < len(masks[key]):
            yield found[key], index


class _KeptOnly:
    """One parameter that is its kept rows only, until `restore`."""

    def __init__(self, rows: Rows, index: Tensor, optimizer: torch.optim.Optimizer) -> None:
        parameter, dim = rows.parameter, rows.dim
        self._rows, self._index, self._optimizer = rows, index, optimizer
        self._whole, self._gradient = parameter.data, parameter.grad
        self._states = dict(_state_rows(rows, optimizer))
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.numel() > 1 and key not in self._states:
                raise ValueError(
                    f"the optimiser's state {key!r} of {rows.name!r} has the shape "
                    f"{tuple(value.shape)}, no rows of the parameter's: use RowKeeper"
                )
        parameter.data = self._whole.index_select(dim, index)
        parameter.grad = None
        # With no row at all there is no gradient: an optimiser passes over the parameter.
        if self._gradient is not None and len(index) > 0:
            parameter.grad = self._gradient.index_select(dim, index)
        for key, whole in self._states.items():
            state[key] = whole.index_select(dim, index)

    @torch.no_grad()
    def restore(self) -> None:
        parameter, dim = self._rows.parameter, self._rows.dim
        for key, moved in list(_state_rows(self._rows, self._optimizer)):
            whole = self._states.get(key)
            if whole is None:
                shape = [*moved.shape[:dim], self._whole.shape[dim], *moved.shape[dim + 1 :]]
                whole = moved.new_zeros(shape)
                if key == "step_size":
                    whole += moved.flatten()[0]
            self._optimizer.state[parameter][key] = whole.index_copy_(dim, self._index, moved)
        self._whole.index_copy_(dim, self._index, parameter.data)
        parameter.data, parameter.grad = self._whole, self._gradient
