"""How the outputs of a layer's units are seen while the model runs forward.

Most layers are modules of which they are the output. Others are parts of a module that computes
more: `nn.MultiheadAttention` hands out none of its queries, keys and values, recurrent layers
none of their lower layers' outputs but the last, and mixtures of experts multiply slices of one
parameter, which `avalanche_mgem.model.products` watches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

QKV: tuple[Literal["q"], Literal["k"], Literal["v"]] = ("q", "k", "v")


class Call(NamedTuple):
    """A call of a module, as a forward hook sees it."""

    module: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class Part:
    """Some of the units along a dimension: those at start <= position % period < start + length.

    q, k and v of n units each, one after the other, have the period 3n and start at 0, n and 2n. If
    they lie together head by head, n is the size of a head.
    """

    period: int
    start: int
    length: int

    def of(self, tensor: Tensor, dim: int) -> Tensor:
        """Return a view of these units, with `dim` made two: [.., repetitions, length, ..]."""
        dim %= tensor.ndim
        repeated = torch.unflatten(tensor, dim, (-1, self.period))
        return repeated.narrow(dim + 1, self.start, self.length)

    def select(self, tensor: Tensor, dim: int) -> Tensor:
        """Return these units, [.., repetitions * length, ..]; a view where one period is all."""
        dim %= tensor.ndim
        return self.of(tensor, dim).flatten(dim, dim + 1)


@dataclass(frozen=True)
class Output:
    """The layer's units are those of its module's output, or a part of them."""

    part: Part | None = None

    def read(self, call: Call, width: int, channel_dim: int) -> Tensor:
        """Return the output: of several tensors, the first that has so many units.

        Raises:
            ValueError: none of the tensors has.
        """
        output = self._whole(call, width, channel_dim)
        return output if self.part is None else self.part.select(output, channel_dim)

    def _whole(self, call: Call, width: int, channel_dim: int) -> Tensor:
        output = call.output
        if isinstance(output, Tensor) or not isinstance(output, tuple | list):
            return output
        for tensor in output:
            dense = isinstance(tensor, Tensor) and tensor.ndim >= -channel_dim
            if dense and tensor.is_floating_point() and tensor.shape[channel_dim] == width:
                return tensor  # type: ignore[no-any-return]
        found = ", ".join(
            str(tuple(t.shape)) if isinstance(t, Tensor) else type(t).__name__ for t in output
        )
        raise ValueError(
            f"a gated {type(call.module).__name__} returns ({found}), where no tensor has its "
            f"{width} units; leave it out with target_modules"
        )


@dataclass(frozen=True)
class Projection:
    """Queries, keys or values, or what comes out, of nn.MultiheadAttention.

    The first three are computed anew from the inputs, which costs three of the four projections'
    forward passes again.
    """

    of: Literal["q", "k", "v", "out"]

    def read(self, call: Call, width: int, channel_dim: int) -> Tensor:
        """Return it, [N, L, width] or, unbatched, [L, width]."""
        attention: nn.MultiheadAttention = call.module
        if self.of == "out":
            output: Tensor = call.output[0]
        else:
            index = QKV.index(self.of)
            given = call.arguments[index : index + 1]
            x = given[0] if given else call.keywords[("query", "key", "value")[index]]
            with torch.no_grad():
                output = functional.linear(x, *_projection(attention, index))
        batch_first = attention.batch_first or output.ndim == 2
        return output if batch_first else output.transpose(0, 1)


def _projection(attention: nn.MultiheadAttention, index: int) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of q, k or v."""
    bias = attention.in_proj_bias
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    weight = attention.in_proj_weight
    if weight is None:
        apart = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        return apart[index], biases[index]
    return weight.chunk(3)[index], biases[index]


@dataclass(frozen=True)
class Hidden:
    """The hidden units of a recurrent layer, or of a cell.

    Args:
        index: of the layer and its direction among those of the module, as in h_n; 0 of a cell.
    """

    index: int

    def read(self, call: Call, width: int, channel_dim: int) -> Tensor:
        """Return h, [N, L, width], or [N, width] of a cell or of a layer below the last.

        Of the layers below the last nothing is seen but where their last step has ended.
        """
        module = call.module
        if isinstance(module, nn.RNNCellBase):
            hidden: Tensor = call.output[0] if isinstance(call.output, tuple) else call.output
            return hidden
        output, states = call.output
        directions = 2 if module.bidirectional else 1
        if self.index // directions < module.num_layers - 1:
            h_n: Tensor = states[0] if isinstance(states, tuple) else states
            return h_n[self.index]
        hidden = output.data if isinstance(output, PackedSequence) else output
        hidden = hidden.narrow(-1, self.index % directions * width, width)
        return hidden if module.batch_first or hidden.ndim == 2 else hidden.transpose(0, 1)


@dataclass(frozen=True)
class Product:
    """The products of a module's input, or of what it makes of it, with a weight of its own.

    Args:
        weight: its name in `owner`.
        owner: the module that has it, the watched one or a part of it.
        dim: the weight's dimension along which the units of a product lie.
        bias: the name of what is added to a product later, [experts, n] or [n].
        through: the weight [experts * r, in] of a LoRA's A: it is the product of the same inputs
            with this one that counts.
        experts: how many experts the weight has; None: it is one matrix.
        part: of the product's units, those that are meant.
    """

    weight: str
    owner: nn.Module
    dim: int
    bias: str | None = None
    through: Tensor | None = None
    experts: int | None = None
    part: Part | None = None


Source = Output | Projection | Hidden | Product

OUTPUT = Output()
