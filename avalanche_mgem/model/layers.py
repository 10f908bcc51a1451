"""Which parameters are the rows of which output.

A linear layer's output unit i is fed by row i of its weight, a convolution's output channel by its
filter i. Layers of libraries that need not be installed are recognised by their attributes: gpt2's
Conv1D (transformers), LoRA layers (peft). A LoRA layer has two outputs (arXiv 2406.17245, section
3.3): A [r, in] has rows of its own output xA, B [out, r] has rows of the combined output of the
whole layer, base and adapters together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

from torch import nn

from avalanche_mgem.arguments import instance, suggestion
from avalanche_mgem.model.heads import Heads, head_names
from avalanche_mgem.model.targets import (
    TargetModules,
    convolves,
    inside,
    is_lora,
    join,
    target_names,
)

Kind = Literal["linear", "conv1d", "conv2d", "lora"]


class Rows(NamedTuple):
    """The rows of a parameter lie along its dimension `dim`, one for each output unit."""

    name: str
    parameter: nn.Parameter
    dim: int


@dataclass(frozen=True)
class GatedLayer:
    """A module, and the trainable parameters whose rows are the n units of its output.

    Args:
        name: of the module in the model.
        module: whose output it is.
        kind: "linear", "conv2d", "conv1d" (gpt2's, weight [in, out]) or "lora" (the combined
            output; the A of an adapter is a "linear" or "conv2d" layer of its own).
        rows: weights, each with n rows; what is frozen is no part of them.
        biases: the trainable biases [n] of the same units, by name.
        channel_dim: of the units in the output.
    """

    name: str
    module: nn.Module
    kind: Kind
    rows: tuple[Rows, ...]
    biases: tuple[tuple[str, nn.Parameter], ...] = ()
    channel_dim: int = -1

    @property
    def n_rows(self) -> int:
        """The number of output units, n."""
        return self.rows[0].parameter.shape[self.rows[0].dim]


def find_gated_layers(
    model: nn.Module,
    target_modules: TargetModules = None,
    *,
    heads: Heads = None,
    seen_heads: Iterable[str] | None = None,
) -> list[GatedLayer]:
    """Return the layers of `model` whose rows can be gated, in module order.

    Keep their names, not them: modules and parameters may be replaced between two steps.
    `resolve_gated_layers` has the layers of these names as they are now.

    Args:
        model: whose Linear, Conv2d, Conv1D and LoRA layers are looked at.
        target_modules: None: every such layer but output heads and layers whose weight is shared
            with another module. "all-linear": all but convolutions and heads, shared weights too.
            Any other string: a regular expression that the whole name of a module must match. A
            list: names of modules, or their last parts. All as peft has them, but each of a list
            must match a layer, and heads are taken in no case: see `heads`.
        heads: the output heads, names or shell patterns of modules; () for none. None: Avalanche's
            IncrementalClassifier and MultiHeadClassifier, Hugging Face's output embeddings, and
            what is named classifier, aux_classifier, classification_head, score, lm_head or
            qa_outputs at the top (of a Sequential of that name, its last layer), and `seen_heads`;
            where there is none of these, the last layer, convolution or linear.
        seen_heads: layers that a forward pass has shown to be heads, see
            `avalanche_mgem.model.heads.HeadWatch`.

    Raises:
        ValueError: a name or a pattern that matches nothing, a model without a layer to gate, a
            LoRA layer that is merged, DoRA and other variants of LoRA.
    """
    instance("model", model, nn.Module, what="a torch module")
    known = gateable_layers(model)
    if not known:
        raise ValueError("model has no layer with rows to gate: no Linear, Conv2d, Conv1D or LoRA")
    tops = head_names(model, known, heads, seen_heads)
    free = {n: m for n, m in known.items() if not any(inside(n, top) for top in tops)}
    if not free:
        raise ValueError(
            f"model has no layer with rows to gate but output heads: {', '.join(known)}; "
            "heads=() takes them as layers"
        )
    layers = [
        layer
        for name in target_names(model, free, target_modules)
        for layer in _layers_of(name, model.get_submodule(name))
        if layer.rows
    ]
    if not layers:
        raise ValueError("model has no layer with rows to gate: the weights of all are frozen")
    return layers


def find_heads(
    model: nn.Module, heads: Heads = None, seen: Iterable[str] | None = None
) -> list[str]:
    """Return the names of the output heads, which are no gated layers; see `find_gated_layers`."""
    return head_names(model, gateable_layers(model), heads, seen)


def resolve_gated_layers(model: nn.Module, names: Iterable[str]) -> list[GatedLayer]:
    """Return the layers of these names as they are now; what is frozen by now is left out.

    Raises:
        ValueError: a name that the model no longer has, or a LoRA layer that was merged since.
    """
    return [
        layer
        for name in names
        for layer in _layers_of(name, _module(model, name))
        if layer.name == name and layer.rows
    ]


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        known = suggestion(name, [other for other, _ in model.named_modules()])
        raise ValueError(f"model has no module {name!r} any more; {known}") from error


def gateable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return what has rows of some output, frozen layers too; a LoRA layer is one with its parts.

    The output projection of nn.MultiheadAttention is left out: its forward is never called.
    """
    found: dict[str, nn.Module] = {}
    closed: str | None = None
    for name, module in model.named_modules():
        if closed is not None and inside(name, closed):
            continue
        if is_lora(module) or isinstance(module, nn.MultiheadAttention):
            closed = name
        if _kind(module) is not None:
            found[name] = module
    return found


def _kind(module: nn.Module) -> Kind | None:
    if is_lora(module):
        base: Any = module.base_layer
        has_units = _kind(base) is not None or hasattr(base, "out_features")  # quantised ones
        # peft's wrapper of a lone parameter (ParamWrapper) calls neither A nor B.
        return "lora" if has_units and not hasattr(module, "parameter_name") else None
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return None


def _layers_of(name: str, module: nn.Module) -> list[GatedLayer]:
    kind = _kind(module)
    if kind == "lora":
        return _lora_layers(name, module)
    return [] if kind is None else [_layer(name, module, kind, {name: module})]


def _layer(name: str, module: nn.Module, kind: Kind, owners: Mapping[str, nn.Module]) -> GatedLayer:
    """Return the layer whose output is that of `module`, with the rows that `owners` have."""
    rows, biases = [], []
    for prefix, owner in owners.items():
        # A weight that is quantised or parametrised is no Parameter: it has no rows to hold still.
        if _is_trained(weight := getattr(owner, "weight", None)):
            rows.append(Rows(join(prefix, "weight"), weight, int(_kind(owner) == "conv1d")))
        if _is_trained(bias := getattr(owner, "bias", None)):
            biases.append((join(prefix, "bias"), bias))
    channel_dim = -3 if convolves(module) else -1
    return GatedLayer(name, module, kind, tuple(rows), tuple(biases), channel_dim)


def _is_trained(parameter: object) -> TypeGuard[nn.Parameter]:
    return isinstance(parameter, nn.Parameter) and parameter.requires_grad


def _lora_layers(name: str, module: Any) -> list[GatedLayer]:
    """Return the combined layer, then that of each active adapter's A."""
    adapters = _active_adapters(module)
    owners = {join(name, "base_layer"): module.base_layer}
    owners |= {join(name, f"lora_B.{adapter}"): module.lora_B[adapter] for adapter in adapters}
    layers = [_layer(name, module, "lora", owners)]
    for adapter in adapters:
        layers += _layers_of(join(name, f"lora_A.{adapter}"), module.lora_A[adapter])
    if any(layer.rows for layer in layers):
        _check_lora(name, module, adapters)
    return layers


def _active_adapters(module: Any) -> list[str]:
    if getattr(module, "disable_adapters", False):
        return []
    active = getattr(module, "active_adapters", None) or getattr(module, "active_adapter", None)
    active = [active] if isinstance(active, str) else active or []
    return [adapter for adapter in active if adapter in module.lora_A]


def _check_lora(name: str, module: Any, adapters: Iterable[str]) -> None:
    if getattr(module, "merged", False):
        raise ValueError(
            f"the LoRA layer {name!r} is merged: its A and B take no part in the forward pass and "
            "cannot be gated; unmerge_adapter() first"
        )
    for adapter in adapters:
        use_dora = getattr(module, "use_dora", {}).get(adapter, False)
        if use_dora or adapter in getattr(module, "lora_variant", {}):
            raise ValueError(
                f"the adapter {adapter!r} of {name!r} is DoRA or another variant of LoRA, which "
                "sends more than the tokens through A; only plain LoRA can be gated"
            )
