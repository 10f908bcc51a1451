"""Where the output units of a layer lie in its parameters.

Row i of a linear layer's weight feeds output unit i, and that is all for most layers. Others keep
several matrices in one parameter: experts [experts, rows, in], q, k and v on top of one another,
the gates of a recurrent layer. `Rows` says which part of a parameter feeds which unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from avalanche_mgem.model.sources import OUTPUT, Part, Source
from avalanche_mgem.restriction.rows import row_magnitudes

Kind = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "convolution",
    "bilinear",
    "lora",
    "attention",
    "recurrent",
    "experts",
    "router",
]


@dataclass(frozen=True)
class Rows:
    """The rows of a parameter: what of it feeds each of a layer's output units.

    Args:
        name: of the parameter in the model.
        parameter: that has the rows.
        dims: its dimensions along which the units lie, in the order of the units: (0,) of a linear
            layer's weight [out, in], (0, 2) of experts' [experts, in, out].
        folds: (dimension, sizes), ascending: the parameter has these dimensions made two first. The
            weights [4 * hidden, in] of an LSTM are those of its gates, [4, hidden, in], and all
            four of (1,) feed hidden unit j.
        part: of the units along the last of `dims`, those that are meant.
    """

    name: str
    parameter: nn.Parameter
    dims: tuple[int, ...] = (0,)
    folds: tuple[tuple[int, tuple[int, int]], ...] = ()
    part: Part | None = None

    @property
    def width(self) -> int:
        """The number of units, those of other parts included."""
        if self._is_plain:
            return math.prod(self.parameter.shape[dim] for dim in self.dims)
        folded = self._folded(self.parameter.detach())
        return math.prod(folded.shape[dim] for dim in self.dims)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """The sizes of the units' dimensions in what `of` returns."""
        if self._is_plain:
            return tuple(self.parameter.shape[dim] for dim in self.dims)
        shape = self.of(self.parameter.detach()).shape
        return tuple(shape[: len(self.dims) + (self.part is not None)])

    @property
    def own_dims(self) -> tuple[int, ...]:
        """The dimensions of the parameter, as it is, along which its rows lie, ascending."""
        folded = [dim for dim, _ in self.folds]
        own = [d for d in range(self.parameter.ndim) for _ in range(1 + folded.count(d))]
        return tuple(sorted({own[dim] for dim in self.dims}))

    @property
    def _is_plain(self) -> bool:
        return not self.folds and self.part is None

    def of(self, tensor: Tensor) -> Tensor:
        """Return a view of a tensor of the parameter's shape, [*units, ...]: each unit's row."""
        tensor = self._folded(tensor).movedim(self.dims, tuple(range(len(self.dims))))
        return tensor if self.part is None else self.part.of(tensor, len(self.dims) - 1)

    def _folded(self, tensor: Tensor) -> Tensor:
        for dim, sizes in reversed(self.folds):
            tensor = torch.unflatten(tensor, dim, sizes)
        return tensor

    def spread(self, kept: Tensor) -> Tensor:
        """Return what is kept of the parameter's rows, bool [sizes of `own_dims`].

        Args:
            kept: of the units, bool of as many as there are. Rows of no unit of these are kept.
        """
        parameter, dims = self.parameter, self.own_dims
        sizes = [parameter.shape[dim] for dim in dims]
        if self._is_plain and dims == self.dims:
            return kept.reshape(sizes)
        shape = [size if dim in dims else 1 for dim, size in enumerate(parameter.shape)]
        whole = torch.ones(shape, dtype=torch.bool, device=kept.device)
        view = self.of(whole)
        units = len(self.dims) + (self.part is not None)
        view.copy_(kept.reshape(*view.shape[:units], *[1] * (view.ndim - units)).expand_as(view))
        return whole.reshape(sizes)

    def magnitudes(self, tensor: Tensor) -> Tensor:
        """Return the mean of |w| over each unit's row, float32 [units], of such a tensor."""
        if self._is_plain and len(self.dims) == 1:
            return row_magnitudes(tensor, self.dims[0])
        rows = self.of(tensor.detach())
        others = list(range(len(self.unit_shape), rows.ndim))
        total = rows.abs().sum(others, dtype=torch.float32) if others else rows.abs().float()
        return total.flatten() / max(rows.numel() // max(total.numel(), 1), 1)


def is_trained(parameter: object) -> TypeGuard[nn.Parameter]:
    """Whether it is a parameter that trains: what is quantised or parametrised is none."""
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad


@dataclass(frozen=True)
class GatedLayer:
    """Output units, and the trainable parameters whose rows feed them.

    Args:
        name: of the module in the model whose output they are; of a part of a module's outputs, the
            module's name and the part's, such as `attn.c_attn.q` or `mlp.experts.down_proj`.
        module: that is watched for what they put out.
        kind: "linear", "conv1d" (gpt2's, weight [in, out]), "conv2d", "convolution" (all others),
            "bilinear", "lora" (the combined output; the A of an adapter is a layer of its own),
            "attention" (a projection of nn.MultiheadAttention), "recurrent" (the hidden units of
            one layer and direction), "experts" or "router".
        rows: weights, each with rows for the n units; what is frozen is no part of them.
        biases: the trainable biases [n] of the same units, by name, where each is one of them.
        channel_dim: of the units in the output.
        source: how the output is seen.
        blocks: of n units each, which are chosen among in each block: (experts,), (experts, 2) with
            the two halves of a fused matrix, (3,) with queries, keys and values. (): it is one.
    """

    name: str
    module: nn.Module
    kind: Kind
    rows: tuple[Rows, ...]
    biases: tuple[tuple[str, nn.Parameter], ...] = ()
    channel_dim: int = -1
    source: Source = OUTPUT
    blocks: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the units' scores and masks: (*blocks, n)."""
        return (*self.blocks, self.n_rows // max(math.prod(self.blocks), 1))

    @property
    def n_rows(self) -> int:
        """The number of output units, of all blocks together."""
        return math.prod(self.rows[0].unit_shape)


@dataclass(frozen=True)
class Slices:
    """The slices of tensors along some dimensions, in the order of their positions."""

    dims: tuple[int, ...]

    def select(self, tensor: Tensor, index: Tensor) -> Tensor:
        """Return copies of k slices, along `dims` or, where these are several, along the first.

        index: positions among the slices, flattened, int64 [k].
        """
        if len(self.dims) == 1:
            return tensor.index_select(self.dims[0], index)
        return self._in_front(tensor)[self._place(tensor, index)]

    def copy(self, tensor: Tensor, index: Tensor, values: Tensor) -> None:
        """Write slices, as `select` returns them, into the tensor."""
        if self.dims == (0,) and _can_be_wide(tensor) and _can_be_wide(values):
            _wide(tensor).index_copy_(0, index, _wide(values))
        elif len(self.dims) == 1:
            tensor.index_copy_(self.dims[0], index, values)
        else:
            self._in_front(tensor)[self._place(tensor, index)] = values

    def fill(self, tensor: Tensor, index: Tensor, value: float) -> None:
        """Write one value into these slices of the tensor."""
        if len(self.dims) == 1:
            tensor.index_fill_(self.dims[0], index, value)
        else:
            self._in_front(tensor)[self._place(tensor, index)] = value

    def first(self, selected: Tensor, n: int) -> Tensor:
        """Return the first n slices of what `select` has returned."""
        return selected.narrow(self.dims[0] if len(self.dims) == 1 else 0, 0, n)

    def mask(self, kept: Tensor, ndim: int) -> Tensor:
        """Return what is kept of the slices, bool [sizes], so that it fits tensors of `ndim`."""
        shape = [1] * ndim
        for dim, size in zip(self.dims, kept.shape, strict=True):
            shape[dim] = size
        return kept.view(shape)

    def _in_front(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(self.dims, tuple(range(len(self.dims))))

    def _place(self, tensor: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        return torch.unravel_index(index, [tensor.shape[dim] for dim in self.dims])


# torch copies rows one element after the other, so that those of 16 bytes take a quarter of the
# time of float32.
_WIDE = torch.complex128


def _can_be_wide(tensor: Tensor) -> bool:
    """Whether the rows of a tensor can be taken for ones of wide elements."""
    if tensor.device.type != "cpu" or tensor.ndim < 2 or not tensor.is_contiguous():
        return False
    size = tensor.itemsize
    row = tensor.numel() // max(len(tensor), 1) * size
    return row > 0 and row % _WIDE.itemsize == 0 == tensor.storage_offset() * size % _WIDE.itemsize


def _wide(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).view(_WIDE)
