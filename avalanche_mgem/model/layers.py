"""Which layers of a model are gated (see find_gated_layers), by name again in each step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

from torch import nn

from avalanche_mgem.arguments import instance, suggestion
from avalanche_mgem.model.fused import Fused, check_fused, parts_of, require_matches
from avalanche_mgem.model.heads import Heads, head_names
from avalanche_mgem.model.kinds import is_closed, layer_keys, layers_of, may_be_fused, why_coupled
from avalanche_mgem.model.targets import (
    TargetModules,
    inside,
    join,
    target_names,
)
from avalanche_mgem.model.tuners import why_none_is_gated
from avalanche_mgem.model.units import GatedLayer


def find_gated_layers(
    model: nn.Module,
    target_modules: TargetModules = None,
    *,
    heads: Heads = None,
    seen_heads: Iterable[str] | None = None,
    fused: Fused = "layer",
) -> list[GatedLayer]:
    """Return the layers of `model` whose rows can be gated, in module order.

    Keep their names, not them: modules and parameters may be replaced between two steps.
    `resolve_gated_layers` has the layers of these names as they are now.

    Args:
        model: whose linear, convolutional and recurrent layers, attention, mixtures of experts
            with their routers, and LoRA layers are looked at; see `avalanche_mgem.model.kinds` and
            `avalanche_mgem.model.experts`.
        target_modules: None: every such layer but output heads and layers whose weight is shared
            with another module. "all-linear": all but convolutions, recurrent layers and heads,
            shared weights too. Any other string: a regular expression that the whole name of a
            module must match. A list: names of modules, or their last parts. All as peft has them,
            but each of a list must match a layer, and heads are taken in no case: see `heads`. A
            parameter of experts has a name as peft's `target_parameters` has, `experts.down_proj`,
            the projections of attention are `in_proj` and `out_proj`.
        heads: the output heads, names or shell patterns of modules; () for none. None: Avalanche's
            IncrementalClassifier and MultiHeadClassifier, Hugging Face's output embeddings, and
            what is named classifier, aux_classifier, classification_head, score, lm_head or
            qa_outputs at the top (of a Sequential of that name, its last layer), and `seen_heads`;
            where there is none of these, the last layer, convolution or linear.
        seen_heads: layers that a forward pass has shown to be heads, see
            `avalanche_mgem.model.heads.HeadWatch`.
        fused: linear layers that hold several matrices, such as gpt2's c_attn. "layer": each is one
            layer. "parts": each of its queries, keys and values, or the two halves of a fused
            feed-forward layer, is a layer of its own, named after it: `attn.c_attn.q`. How they lie
            is known of layers in transformers, timm and torchvision. A mapping: of layers by their
            names, or the last parts of these, the sizes of the parts, which follow one after the
            other: {"qkv": (64, 16, 16)}; where they do not fill the layer, they are repeated, as
            in layers that are fused head by head.

    Raises:
        ValueError: a name or a pattern that matches nothing, a model without a layer to gate (with
            peft's adapters that it has instead), a LoRA layer that is merged, DoRA and other
            variants of LoRA, a fused layer of which it is not known how it is divided, or sizes
            that do not fit it; a layer that a name or an expression means, and whose rows cannot be
            held because its weight is made of other rows too, as under spectral normalisation.

    Warns:
        UserWarning: layers that a name or an expression means are frozen.
    """
    instance("model", model, nn.Module, what="a torch module")
    known = gateable_layers(model)
    if not known:
        raise ValueError(
            "model has no layer with rows to gate: no linear, convolutional or recurrent layer, "
            "attention, experts or LoRA"
        )
    tops = head_names(model, known, heads, seen_heads)
    free = {n: m for n, m in known.items() if not any(inside(n, top) for top in tops)}
    if not free:
        raise ValueError(
            f"model has no layer with rows to gate but output heads: {', '.join(known)}; "
            "heads=() takes them as layers"
        )
    names = target_names(model, free, target_modules)
    fused = check_fused(fused)
    require_matches(fused, [name for name in names if may_be_fused(known[name])])
    layers = [layer for layer in _layers(model, names, fused) if layer.rows]
    if target_modules not in (None, "all-linear"):
        _require_named(model, names, layers)
    if not layers:
        raise ValueError(f"model has no layer with rows to gate: {why_none_is_gated(model, names)}")
    return layers


def _require_named(model: nn.Module, names: list[str], layers: list[GatedLayer]) -> None:
    """Say what becomes of layers that the user has named, and that have no rows to gate."""
    frozen = []
    for name in names:
        if any(inside(layer.name, name) for layer in layers):
            continue
        reason = why_coupled(model.get_submodule(_owner(model, name, {})))
        if reason is not None:
            raise ValueError(f"target_modules: {name!r} cannot be gated: {reason}")
        frozen.append(name)
    if frozen and layers:
        shown = ", ".join(frozen[:4]) + (", ..." if len(frozen) > 4 else "")
        warnings.warn(
            f"target_modules: {len(frozen)} of the layers that are meant have no trainable rows "
            f"and are not gated: {shown}",
            stacklevel=4,
        )


def find_heads(
    model: nn.Module, heads: Heads = None, seen: Iterable[str] | None = None
) -> list[str]:
    """Return the names of the output heads, which are no gated layers; see `find_gated_layers`."""
    return head_names(model, gateable_layers(model), heads, seen)


def resolve_gated_layers(
    model: nn.Module, names: Iterable[str], *, fused: Fused = "layer"
) -> list[GatedLayer]:
    """Return the layers of these names as they are now; what is frozen by now is left out.

    fused: with which they were found.

    Raises:
        ValueError: a name that the model no longer has, or a LoRA layer that was merged since.
    """
    names = list(names)
    found = {layer.name: layer for layer in _layers(model, names, fused)}
    for name in names:
        if name not in found:
            _check_is_there(model, name)
    return [found[name] for name in names if name in found and found[name].rows]


def _layers(model: nn.Module, names: Iterable[str], fused: Fused) -> Iterator[GatedLayer]:
    """Yield all layers of the modules that have layers of these names, or keys, and only them."""
    keys_of: dict[str, list[str]] = {}
    closed: dict[str, bool] = {}
    for name in names:
        keys_of.setdefault(_owner(model, name, closed), []).append(name)
    for owner, keys in keys_of.items():
        module = model.get_submodule(owner)
        parts = parts_of(model, owner, module, fused) if may_be_fused(module) else None
        for layer in layers_of(owner, module, parts):
            if any(inside(layer.name, key) for key in keys):
                yield layer


def _owner(model: nn.Module, name: str, closed: dict[str, bool]) -> str:
    """Return the module that has the layer of this name: it, or the one of which it is a part.

    closed: what is known of `is_closed` by name, to ask once.
    """
    module, path = model, ""
    for part in name.split(".") if name else ():
        child = getattr(module, part, None)
        if path not in closed:
            closed[path] = is_closed(module)
        if closed[path] or not isinstance(child, nn.Module):
            break
        module, path = child, join(path, part)
    return path


def _check_is_there(model: nn.Module, name: str) -> None:
    """Raise ValueError for a layer that the model has no more; what is inactive it still has."""
    owner = _owner(model, name, {})
    keys = layer_keys(owner, model.get_submodule(owner))
    if not any(inside(name, key) for key in keys):
        known = suggestion(name, [other for other, _ in model.named_modules()])
        raise ValueError(f"model has no module {name!r} any more; {known}")


def gateable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return what has rows of some output, frozen layers too; a LoRA layer is one with its parts.

    Some modules have several such layers, and each goes by a name of its own.
    """
    found: dict[str, nn.Module] = {}
    closed: str | None = None
    for name, module in model.named_modules():
        if closed is not None and inside(name, closed):
            continue
        if is_closed(module):
            closed = name
        found |= dict.fromkeys(layer_keys(name, module), module)
    return found
