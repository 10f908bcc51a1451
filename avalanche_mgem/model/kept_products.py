"""The backward pass of a layer that computes the gradient of its weight for the kept rows alone.

For y = xW' + b the gradient of the weight is dW = dy'x, one row for each output unit. If only the
rows K may move, dW_K = dy[:, K]'x is all that is needed: a share |K| / out of the work. Where that
does not pay, and dy is small beside dW, the other columns of dy are made zero before the product,
so that nobody has to read dW to mask it. The layer's own forward pass stays as it is; `cut_output`
puts the other backward pass behind its output.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from avalanche_mgem.model.units import Slices

Pair = tuple[int, ...]

# Of a gradient's elements, for one of its factors': the norms of these take far less time.
_SMALL = 8


@dataclass(eq=False)
class Cut:
    """What of one layer's weight gradient a step computes.

    Attributes:
        positions: of the kept rows, ascending, int64 [kept], which alone are computed.
        kept: which rows are, bool [n], if the others are to be computed as zeros. Neither: all
            rows are computed.
        used: whether a backward pass has left rows out.
        reason: why none has, though one was to.
        takes_norms: whether a backward pass takes norms.
        norms: those of dy and x, of which the gradient is the product, where it is large beside
            them.
    """

    positions: Tensor | None = None
    kept: Tensor | None = None
    used: bool = False
    reason: str = ""
    takes_norms: bool = False
    norms: tuple[Tensor, ...] = ()
    _storage: weakref.ref[torch.UntypedStorage] | None = field(default=None, repr=False)
    _version: int = -1

    def take(self) -> bool:
        """Return whether a backward pass leaves rows out."""
        leaves_out = self.positions is not None or self.kept is not None
        if leaves_out and torch.is_grad_enabled():
            # What is differentiated again is the whole gradient.
            self.reason, leaves_out = "create_graph", False
            self.cancel()
        self.used = self.used or leaves_out
        return leaves_out

    def cancel(self) -> None:
        """Compute all rows from here on."""
        self.positions = self.kept = None

    def made(self, gradient: Tensor, dy: Tensor, x: Tensor) -> None:
        """Note the gradient that a backward pass has made of the kept rows, and of what."""
        self._storage, self._version = weakref.ref(gradient.untyped_storage()), gradient._version
        is_large = gradient.ndim == 2 and _SMALL * (dy.numel() + x.numel()) <= gradient.numel()
        self.norms = tuple(torch._foreach_norm([dy, x])) if self.takes_norms and is_large else ()

    def has_made(self, gradient: Tensor | None) -> bool:
        """Whether a gradient is the one that was noted, whatever was done to it since."""
        storage = None if self._storage is None else self._storage()
        if storage is None or gradient is None or gradient.layout != torch.strided:
            return False
        return gradient.untyped_storage() is storage

    def is_all_of(self, gradient: Tensor | None) -> bool:
        """Whether a gradient is the one that was noted, and has not been written to since."""
        return (
            gradient is not None and self.has_made(gradient) and gradient._version == self._version
        )

    def forget(self) -> None:
        """Let go of the gradient that was noted."""
        self._storage, self.norms = None, ()


class Products(Protocol):
    """The three products of a layer's backward pass; dy: the gradient of its output."""

    @property
    def dim(self) -> int:
        """The dimension of the weight along which its rows lie."""

    def of_input(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input, of its shape."""

    def of_weight(self, dy: Tensor, x: Tensor, weight: Tensor, rows: Tensor | None) -> Tensor:
        """Return that of these rows of the weight, which lie along `dim`; None: of all."""

    def of_bias(self, dy: Tensor) -> Tensor:
        """Return that of the bias."""


class Matrix(NamedTuple):
    """y = xW', with W [out, in] (dim=0), or y = xW, with W [in, out] (dim=1)."""

    dim: int

    def of_input(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        return _flat(dy).mm(weight if self.dim == 0 else weight.t()).view(x.shape)

    def of_weight(  # noqa: D102
        self, dy: Tensor, x: Tensor, weight: Tensor, rows: Tensor | None
    ) -> Tensor:
        dy = _flat(dy) if rows is None else _flat(dy).index_select(1, rows)
        return dy.t().mm(_flat(x)) if self.dim == 0 else _flat(x).t().mm(dy)

    def of_bias(self, dy: Tensor) -> Tensor:  # noqa: D102
        return _flat(dy).sum(0)


class Convolution(NamedTuple):
    """A convolution of one group, y [N, out, *positions], W [out, in, *kernel]."""

    stride: Pair
    padding: Pair
    dilation: Pair
    dim: int = 0

    def of_input(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: D102
        return self._backward(dy, x, weight, 0)

    def of_weight(  # noqa: D102
        self, dy: Tensor, x: Tensor, weight: Tensor, rows: Tensor | None
    ) -> Tensor:
        if rows is not None:
            dy, weight = dy.index_select(1, rows), weight.index_select(0, rows)
        return self._backward(dy, x, weight, 1)

    def of_bias(self, dy: Tensor) -> Tensor:  # noqa: D102
        return dy.sum([0, *range(2, dy.ndim)])

    def _backward(self, dy: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        wanted, none = [which == 0, which == 1, False], [0] * len(self.stride)
        settings = list(self.stride), list(self.padding), list(self.dilation), False, none, 1
        found = torch.ops.aten.convolution_backward(dy, x, weight, None, *settings, wanted)
        gradient: Tensor = found[which]
        return gradient


def cut_output(
    output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, products: Products, cut: Cut
) -> Tensor:
    """Return a layer's output with a backward pass that leaves out what `cut` says by then.

    The numbers are those of `output`, whose memory it shares. What the backward pass computes is in
    the output's dtype, which under autocast is not the parameters'.

    Args:
        output: of the layer; nothing else may go on with it.
        x: its input.
        weight: that has the rows.
        bias: of the layer, if it has one.
        products: what kind of layer it is.
        cut: which rows are kept; may be set until the backward pass.
    """
    # Cast outside, so that a second derivative goes through it.
    made: Tensor = _KeptRows.apply(output.detach(), x.to(output.dtype), weight, bias, products, cut)
    return made


class _KeptRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        products: Products,
        cut: Cut,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products, ctx.cut = products, cut
        ctx.bias_dtype = None if bias is None else bias.dtype
        return output.detach()  # not as it is given, or it could not be modified in place

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = slopes
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[1:4]
        # The weight first: what it takes besides is gone before there is a gradient of the input.
        of_weight = _of_weight(ctx, dy, x, weight) if needs_weight else None
        of_x = ctx.products.of_input(dy, x, weight.to(dy.dtype)) if needs_x else None
        of_bias = ctx.products.of_bias(dy).to(ctx.bias_dtype) if needs_bias else None
        return None, of_x, of_weight, of_bias, None, None


def _of_weight(ctx: Any, dy: Tensor, x: Tensor, weight: nn.Parameter) -> Tensor:
    products: Products = ctx.products
    cut: Cut = ctx.cut
    if not cut.take():
        return products.of_weight(dy, x, weight, None).to(weight.dtype)
    if cut.positions is None:
        assert cut.kept is not None
        shown = dy * cut.kept.to(dy.dtype)
        gradient = products.of_weight(shown, x, weight, None).to(weight.dtype)
    else:
        few = products.of_weight(dy, x, weight, cut.positions).to(weight.dtype)
        gradient = torch.zeros_like(weight, requires_grad=False)
        Slices((products.dim,)).copy(gradient, cut.positions, few)
    cut.made(gradient, dy, x)
    return gradient


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
