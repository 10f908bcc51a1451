"""The products that a module makes with weights of its own, seen while it runs forward.

A mixture of experts takes slices of a parameter [experts, rows, in] and multiplies its tokens with
them, in a loop, batched or grouped, as `experts_implementation` says. None of these products is
the output of a module. So for as long as the module runs, torch tells which functions it calls
(`TorchFunctionMode`): what is made of a weight is followed to the product that it enters, see
`avalanche_mgem.model.operands`. What the module computes is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from avalanche_mgem.model.hooks import no_hook
from avalanche_mgem.model.operands import Operand, Outputs, factors, outputs_of
from avalanche_mgem.model.sources import Product
from avalanche_mgem.model.tokens import Tokens
from avalanche_mgem.model.units import GatedLayer
from avalanche_mgem.restriction.rows import Normalize

_IMPLEMENTATIONS = (None, "eager", "batched_mm", "grouped_mm")


class Sink(Protocol):
    """Where magnitudes go."""

    normalize: Normalize

    def add(self, name: str, total: Tensor, count: int | Tensor) -> None:
        """Add the sum of a layer's magnitudes over so many tokens."""


class ProductWatch:
    """Watches one module for the products of its layers, and tells a sink their magnitudes.

    Args:
        layers: of the module, all with a `Product` as their source.
        token_mask: which tokens count, [N, L], where the module is handed all of them.
        sink: what adds up the magnitudes.
    """

    def __init__(self, layers: Sequence[GatedLayer], token_mask: Tensor | None, sink: Sink) -> None:
        self._layers, self._token_mask, self._sink = list(layers), token_mask, sink
        self._running: _Calls | None = None

    def hooks(self, module: nn.Module) -> list[RemovableHandle]:
        """Register what begins and ends the watch in each call of the module."""
        return [
            module.register_forward_pre_hook(_Begin(self), with_kwargs=True),
            module.register_forward_hook(_End(self), always_call=True),
        ]

    def begin(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Watch a call of the module from here on."""
        self.abandon()
        calls = _Calls(self._sources(), self._see)
        if self._token_mask is not None:
            calls.tokens.begin([*arguments, *keywords.values()], self._token_mask.numel())
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._running = calls
        calls.__enter__()  # type: ignore[no-untyped-call]

    def end(self, module: nn.Module, output: object) -> None:
        """End the watch; where the call has failed, without its magnitudes."""
        self.abandon()
        if output is None:
            return
        for layer in self._layers:
            if layer.name in self._sums:
                total, count = self._sums.pop(layer.name)
                self._sink.add(layer.name, total, count if layer.blocks else count[0])
            else:
                self._nothing_seen(module, layer)

    def abandon(self) -> None:
        """End the watch of a call that was interrupted."""
        calls, self._running = self._running, None
        if calls is not None:
            calls.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _sources(self) -> list[Product]:
        # One weight may have several layers: its parts, and what LoRA adds to it.
        return list({(id(s.owner), s.weight): s for s in map(_source, self._layers)}.values())

    def _nothing_seen(self, module: Any, layer: GatedLayer) -> None:
        """No token came to any expert, or the products are out of sight."""
        used = getattr(getattr(module, "config", None), "_experts_implementation", None)
        if used not in _IMPLEMENTATIONS:
            raise ValueError(
                f"the outputs of {layer.name!r} are not seen, experts_implementation={used!r}: set "
                "'grouped_mm', 'batched_mm' or 'eager', or use another score than 'output'"
            )
        if layer.blocks:
            device = layer.rows[0].parameter.device
            none = torch.zeros(layer.blocks[0], dtype=torch.int64, device=device)
            self._sink.add(layer.name, torch.zeros(layer.shape, device=device), none)

    @torch.no_grad()
    def _see(self, seen: Outputs, tokens: Tensor | None) -> None:
        """Add the magnitudes of a product to those of its layers."""
        counted = seen.counted
        if tokens is not None and self._token_mask is not None:
            mask = self._token_mask.flatten().to(tokens.device)[tokens] != 0
            counted = mask if counted is None else counted & mask
        for layer in self._layers:
            source = _source(layer)
            other = seen.operand.source
            if source.weight == other.weight and source.owner is other.owner:
                self._add(layer, _outputs(source, layer, seen), seen.experts, counted)

    def _add(
        self,
        layer: GatedLayer,
        outputs: Tensor,
        experts: int | Tensor | None,
        counted: Tensor | None,
    ) -> None:
        if layer.name not in self._sums:
            total = outputs.new_zeros(layer.shape, dtype=torch.float32)
            n_experts = layer.blocks[0] if layer.blocks else 1
            count = torch.zeros(n_experts, dtype=torch.int64, device=outputs.device)
            self._sums[layer.name] = total, count
        total, count = self._sums[layer.name]
        sizes = _sizes(outputs, self._sink.normalize, counted)
        if isinstance(experts, Tensor):
            total.index_add_(0, experts, sizes)
            ones = torch.ones_like(experts) if counted is None else counted
            count.index_add_(0, experts, ones.to(count.dtype))
        else:
            (total if experts is None else total[experts]).add_(sizes.sum(0))
            count[experts or 0] += len(outputs) if counted is None else counted.sum()


def _source(layer: GatedLayer) -> Product:
    assert isinstance(layer.source, Product)
    return layer.source


def _outputs(source: Product, layer: GatedLayer, seen: Outputs) -> Tensor:
    """The rows of a product, with their bias, [rows, n], or [rows, 2, n] of two matrices."""
    if source.through is not None:
        return _through(source, seen)
    outputs = seen.outputs
    width = layer.n_rows // (source.experts or 1)
    if outputs.shape[-1] != width:
        raise ValueError(
            f"a product with a weight of {layer.name!r} has {outputs.shape[-1]} units of the "
            f"weight's {width}: leave it out with target_modules"
        )
    bias = None if source.bias is None or seen.has_bias else getattr(source.owner, source.bias)
    if bias is not None:
        outputs = outputs + (bias if seen.experts is None else bias[seen.experts])
    if source.halves is None:
        return outputs
    in_turn = source.halves == "interleaved"
    halves = torch.unflatten(outputs, -1, (-1, 2) if in_turn else (2, -1))
    return halves.transpose(-2, -1) if in_turn else halves


def _through(source: Product, seen: Outputs) -> Tensor:
    """What the A of a LoRA makes of the same inputs, [rows, r]."""
    assert source.through is not None
    a, inputs = source.through, seen.inputs.flatten(0, -2).to(source.through.dtype)
    if source.experts is not None:
        a = torch.unflatten(a, 0, (source.experts, -1))
    if not isinstance(seen.experts, Tensor):
        return functional.linear(inputs, a if seen.experts is None else a[seen.experts])
    outputs = inputs.new_zeros(len(inputs), a.shape[1])
    for expert in range(len(a)):
        rows = (seen.experts == expert).nonzero()[:, 0]
        outputs[rows] = functional.linear(inputs[rows], a[expert]).to(outputs.dtype)
    return outputs


def _sizes(outputs: Tensor, normalize: Normalize, counted: Tensor | None) -> Tensor:
    """The magnitudes of each row, float32 [rows, .., n]; zero in what does not count."""
    size = outputs.abs().float()
    if normalize == "token":
        norm = size.sum(-1, keepdim=True)
        size = size / norm.masked_fill(norm == 0, 1.0)
    if counted is None:
        return size
    return size.masked_fill(~counted.view(-1, *[1] * (size.ndim - 1)), 0.0)


class _Calls(TorchFunctionMode):
    """Follows weights through torch's functions, and tells of the products that they enter."""

    def __init__(
        self, sources: Sequence[Product], see: Callable[[Outputs, Tensor | None], None]
    ) -> None:
        super().__init__()
        self._see, self.tokens = see, Tokens()
        self._operands: dict[int, Operand] = {}
        for source in sources:
            # Where LoRA is added to a parameter, this is what torch keeps of the sum.
            weight = getattr(source.owner, source.weight)
            self._operands[id(weight)] = Operand(weight, source)

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        result = func(*args, **keywords)
        name = getattr(func, "__name__", "")
        pair = factors(name, args, keywords)
        if pair is None:
            self._follow(name, args, result)
        elif isinstance(result, Tensor):
            for factor in pair:
                operand = self._operands.get(id(factor))
                if operand is not None:
                    seen = outputs_of(name, operand, pair, result, args, keywords)
                    self._see(seen, self.tokens.of_product(pair, seen))
        return result

    def _follow(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        given = [self._operands[id(a)] for a in arguments if id(a) in self._operands]
        for operand in given[:1]:
            for made in _tensors(result):
                if made is not operand.tensor and (new := operand.followed(name, arguments, made)):
                    self._operands[id(made)] = new
        self.tokens.follow(name, arguments, result)


def _tensors(result: Any) -> Iterator[Tensor]:
    """The tensors that a function has returned."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        yield from (tensor for tensor in result if isinstance(tensor, Tensor))


@dataclass
class _Begin:
    """Begins a watch; a copy of it, as in a copy of the model, does nothing."""

    watch: ProductWatch

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> None:
        self.watch.begin(arguments, keywords)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()


@dataclass
class _End:
    """Ends it."""

    watch: ProductWatch

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        self.watch.end(module, output)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()
