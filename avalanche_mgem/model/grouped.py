"""The gradients of many groups of samples in one forward and one backward pass.

A linear layer y = xW' + b has the gradient dL/dW = (dL/dy)'x, a sum over samples. So where linear
layers are all that has parameters, and nothing but them stands between a sample's input and its
output, the samples of many groups can go through the model together: the sums are taken group by
group, each by one product that writes where the group's row is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from avalanche_mgem.model.gradients import Parameters, positions

_POINTWISE = (
    nn.CELU,
    nn.Dropout,
    nn.ELU,
    nn.Flatten,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.LogSoftmax,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softmax,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)


class NotGroupedError(ValueError):
    """The model, or this batch of it, wants a pass for each group."""


@dataclass(frozen=True)
class LinearCall:
    """One call of a linear layer: its input [N, ..., in], and where its output's gradient arrives.

    The edge is that of the output as the layer made it, whatever is done to it in place afterwards;
    None where nothing flows back.
    """

    layer: nn.Linear
    input: Tensor
    edge: GradientEdge | None


def why_not_grouped(model: nn.Module, parameters: Parameters) -> str | None:
    """Return what speaks against one pass for many groups, or None.

    Only what the modules are is looked at; what a model's own `forward` does besides shows in a
    comparison with a pass of its own.
    """
    leaves = [module for module in model.modules() if not any(module.children())]
    for leaf in leaves:
        if type(leaf) is not nn.Linear and type(leaf) not in _POINTWISE:
            return f"{type(leaf).__name__} is neither a linear nor a pointwise layer"
    linears = [leaf for leaf in leaves if isinstance(leaf, nn.Linear)]
    owned = [id(p) for layer in linears for p in layer.parameters()]
    if len(set(owned)) < len(owned):
        return "two linear layers share a parameter"
    if any(id(p) not in owned or p.is_complex() for p in parameters):
        return "a parameter belongs to no linear layer"
    return None


@contextmanager
def recorded_linears(model: nn.Module) -> Iterator[list[LinearCall]]:
    """Record the calls of linear layers inside; the hooks are gone on the way out."""
    calls: list[LinearCall] = []

    def record(
        layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        assert isinstance(layer, nn.Linear)  # no other layer gets this hook
        given: Tensor = arguments[0] if arguments else named["input"]
        edge = get_gradient_edge(output) if output.requires_grad else None
        calls.append(LinearCall(layer, given.detach(), edge))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def write_grouped_gradients(
    calls: Sequence[LinearCall],
    loss: Tensor,
    samples: int,
    parameters: Parameters,
    rows: Tensor,
    *,
    half: bool = False,
) -> None:
    """Write the gradients of a sum of G losses, of n samples each, into rows [G, P].

    Args:
        calls: of the linear layers, on G * n samples, group after group.
        loss: the sum over the groups; each sample is in one group's loss only.
        samples: G * n.
        parameters: where each lies in a row, in order.
        rows: what is written; a parameter that no call used gets zeros.
        half: multiply in the dtype of a layer's output, if that is bfloat16; else in that of the
            rows, or float32 where they are bfloat16.

    Raises:
        NotGroupedError: a layer was called twice, or on other than G * n samples.
    """
    if len({id(call.layer) for call in calls}) < len(calls):
        raise NotGroupedError("a linear layer is used twice")
    place = {id(p): at for p, at in zip(parameters, positions(parameters), strict=True)}
    moving = [c for c in calls if c.edge and any(id(p) in place for p in c.layer.parameters())]
    if not moving:
        raise NotGroupedError("no linear layer was seen at work")
    if any(len(call.input) % samples for call in moving):
        raise NotGroupedError("a linear layer sees other samples than the model was given")
    slopes = torch.autograd.grad(loss, [c.edge for c in moving if c.edge], allow_unused=True)
    unused = set(place)
    for call, slope in zip(moving, slopes, strict=True):
        if slope is not None:
            unused -= _write_layer(call, slope, place, rows, half)
    for parameter in unused:
        rows[:, place[parameter]] = 0.0


def _write_layer(
    call: LinearCall, slope: Tensor, place: dict[int, slice], rows: Tensor, half: bool
) -> set[int]:
    """Write one layer's part of the rows; return which parameters it was."""
    groups, layer, written = len(rows), call.layer, set()
    slope = slope.reshape(groups, -1, layer.out_features)
    wide = torch.promote_types(rows.dtype, torch.float32)
    dtype = slope.dtype if half and slope.dtype == torch.bfloat16 else wide
    if (at := place.get(id(layer.weight))) is not None:
        inputs = call.input.reshape(groups, -1, layer.in_features).to(dtype)
        out = rows[:, at].view(groups, layer.out_features, layer.in_features)
        slopes = slope.to(dtype).transpose(1, 2)
        if dtype == rows.dtype:
            torch.bmm(slopes, inputs, out=out)
        else:
            out.copy_(torch.bmm(slopes, inputs))
        written.add(id(layer.weight))
    if layer.bias is not None and (at := place.get(id(layer.bias))) is not None:
        if wide == rows.dtype:
            torch.sum(slope.to(wide), 1, out=rows[:, at])
        else:
            rows[:, at] = slope.sum(1, dtype=wide)
        written.add(id(layer.bias))
    return written
