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

QKV = ("q", "k", "v")
Halves = Literal["concatenated", "interleaved"]


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

    def read(self, call: Call, width: int, channel_dim: int) -> list[Tensor]:
        """Return the output: of several tensors, the first that has so many units.

        Units may lie in groups, [.., groups, width / groups].

        Raises:
            ValueError: none of the tensors has.
        """
        several = isinstance(call.output, tuple | list)
        given = call.output if several else [call.output]
        for tensor in given:
            output = _with_units(tensor, width, channel_dim)
            if output is not None and (output.is_floating_point() or not several):
                return [output if self.part is None else self.part.select(output, channel_dim)]
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in given]
        raise ValueError(
            f"a gated {type(call.module).__name__} returns {', '.join(map(str, shapes))}, without "
            f"its {width} units; leave it out with target_modules"
        )


def _with_units(tensor: Any, width: int, channel_dim: int) -> Tensor | None:
    """Return a tensor with so many units along the dimension; None for what has not."""
    if not isinstance(tensor, Tensor) or tensor.ndim < -channel_dim:
        return None
    if tensor.shape[channel_dim] == width:
        return tensor
    grouped = channel_dim == -1 and tensor.ndim > 1 and tensor.shape[-2:].numel() == width
    return tensor.flatten(-2) if grouped else None


@dataclass(frozen=True)
class Projection:
    """Queries, keys and values, or what comes out, of nn.MultiheadAttention.

    The first three are computed anew from the inputs, which costs three of the four projections'
    forward passes again.

    Args:
        of: those of "q", "k" and "v" that are meant, or "out".
    """

    of: tuple[str, ...]

    def read(self, call: Call, width: int, channel_dim: int) -> list[Tensor]:
        """Return each, [N, L, width] or, unbatched, [L, width]."""
        outputs = [_projected(call, which) for which in self.of]
        batch_first = call.module.batch_first
        return [y if batch_first or y.ndim == 2 else y.transpose(0, 1) for y in outputs]


@torch.no_grad()
def _projected(call: Call, which: str) -> Tensor:
    if which == "out":
        output: Tensor = call.output[0]
        return output
    index = QKV.index(which)
    given = call.arguments[index : index + 1]
    x = given[0] if given else call.keywords[("query", "key", "value")[index]]
    return functional.linear(x, *_projection(call.module, index))


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

    def read(self, call: Call, width: int, channel_dim: int) -> list[Tensor]:
        """Return h, [N, L, width], or [N, width] of a cell or of a layer below the last.

        Of the layers below the last nothing is seen but where their last step has ended.
        """
        module = call.module
        if isinstance(module, nn.RNNCellBase):
            hidden: Tensor = call.output[0] if isinstance(call.output, tuple) else call.output
            return [hidden]
        output, states = call.output
        directions = 2 if module.bidirectional else 1
        if self.index // directions < module.num_layers - 1:
            h_n: Tensor = states[0] if isinstance(states, tuple) else states
            return [h_n[self.index]]
        hidden = output.data if isinstance(output, PackedSequence) else output
        hidden = hidden.narrow(-1, self.index % directions * width, width)
        return [hidden if module.batch_first or hidden.ndim == 2 else hidden.transpose(0, 1)]


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
        halves: how the two matrices lie that a product's units are of, one after the other or in
            turn; None: it is one.
    """

    weight: str
    owner: nn.Module
    dim: int
    bias: str | None = None
    through: Tensor | None = None
    experts: int | None = None
    halves: Halves | None = None


Source = Output | Projection | Hidden | Product

OUTPUT = Output()
