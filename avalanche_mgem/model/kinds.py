"""Which layers a module has, by its kind: what feeds its output units, and how they are seen.

Layers of libraries that need not be installed are recognised by their attributes: gpt2's Conv1D
(transformers), LoRA layers (peft). A LoRA layer has two outputs (arXiv 2406.17245, section 3.3): A
[r, in] has rows of its own output xA, B [out, r] has rows of the combined output of the whole
layer, base and adapters together.

`nn.MultiheadAttention` has its queries, keys and values, which are chosen among by themselves, and
its output. A recurrent module has one layer for each of its layers and directions: hidden unit j is
fed by its row of each gate, and h_j is what it puts out. cuDNN hands out h at every step for the
last layer only, and at the last step for those below. With `proj_size` the hidden units themselves
are not seen, but what they are projected to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from avalanche_mgem.model.behind import CoupledRowsError, tensors_behind
from avalanche_mgem.model.experts import (
    expert_keys,
    expert_layers,
    has_experts,
    is_router,
    router_layer,
)
from avalanche_mgem.model.lora import active_adapters, check_lora, is_of_parameter
from avalanche_mgem.model.sources import QKV, Hidden, Output, Part, Projection
from avalanche_mgem.model.targets import convolves, is_attention, is_lora, is_recurrent, join
from avalanche_mgem.model.units import GatedLayer, Kind, Rows, is_trained

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_keys(name: str, module: nn.Module) -> list[str]:
    """Return the names by which a module's layers are known, none where it has none.

    Most modules have their own name only, those of several weights one for each.
    """
    if _kind(module) is not None:
        return [name]
    if is_attention(module):
        return [join(name, "in_proj"), join(name, "out_proj")]
    return expert_keys(name, module)


def is_closed(module: nn.Module) -> bool:
    """Whether what is inside the module is no layer of its own."""
    return is_lora(module) or isinstance(module, nn.MultiheadAttention) or has_experts(module)


def may_be_fused(module: nn.Module) -> bool:
    """Whether the module is a linear layer, or a LoRA layer on one, that may hold several."""
    base: Any = module.base_layer if is_lora(module) else module
    return _kind(module) in ("linear", "conv1d", "lora") and not convolves(base)


def layers_of(
    name: str, module: nn.Module, parts: Mapping[str, Part] | None = None
) -> list[GatedLayer]:
    """Return the layers of a module, those of which all is frozen too, without rows.

    Args:
        name: of the module in the model.
        module: that has them.
        parts: into which the output of a linear module is divided, by their names: each is a layer
            of its own. None: it is one layer.

    Raises:
        ValueError: a LoRA layer that is merged, DoRA and other variants of LoRA.
    """
    kind = _kind(module)
    if kind is None:
        if is_attention(module):
            return list(_attention_layers(name, module))
        return expert_layers(name, module)
    if kind == "router":
        return [router_layer(name, module)]
    if kind == "recurrent":
        return list(_recurrent_layers(name, module))
    if kind == "lora":
        return _lora_layers(name, module, parts)
    return _plain_layers(name, module, kind, parts=parts)


def _kind(module: nn.Module) -> Kind | None:
    if type(module) is nn.Linear:
        return "linear"  # most are, and every step asks
    if is_lora(module):
        base: Any = module.base_layer
        has_units = _is_matrix(base) or hasattr(base, "out_features")  # quantised ones
        return "lora" if has_units and not is_of_parameter(module) else None
    if is_router(module):
        return "router"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    if convolves(module):
        return "convolution"
    if isinstance(module, nn.Bilinear):
        return "bilinear"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d"
    return "recurrent" if is_recurrent(module) else None


def _is_matrix(base: nn.Module) -> bool:
    """Whether a LoRA's base is a layer whose output is that of one weight's rows."""
    return _kind(base) in ("linear", "conv1d", "conv2d", "convolution")


def _plain_layers(
    name: str,
    module: nn.Module,
    kind: Kind,
    owners: Mapping[str, nn.Module] | None = None,
    parts: Mapping[str, Part] | None = None,
) -> list[GatedLayer]:
    """The layer whose output is that of `module`, or its parts.

    owners: of the rows, by name; None: the module itself.
    """
    owners = {name: module} if owners is None else owners
    channel_dim = -1 - _n_positions(module)
    whole: Mapping[str, Part | None] = parts or {"": None}
    layers = []
    for suffix, part in whole.items():
        rows, biases = [], []
        for prefix, owner in owners.items():
            if not isinstance(owner, nn.Module):
                continue
            for own_name, weight in _weights(owner).items():
                rows.append(_rows(join(prefix, own_name), weight, owner, part))
            if part is None and is_trained(bias := getattr(owner, "bias", None)):
                biases.append((join(prefix, "bias"), bias))
        own = join(name, suffix) if suffix else name
        source = Output(part)
        layers.append(
            GatedLayer(own, module, kind, tuple(rows), tuple(biases), channel_dim, source)
        )
    return layers


def _n_positions(module: nn.Module) -> int:
    """The number of dimensions of a convolution's positions; none of other modules."""
    module = getattr(module, "base_layer", module)
    size: Any = module.kernel_size if convolves(module) else ()
    return len(size)


def _weights(owner: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters behind a weight by name; none where it has no rows of its own."""
    try:
        return tensors_behind(owner, _dim_of_units(owner))
    except CoupledRowsError:
        return {}


def why_coupled(module: nn.Module) -> str | None:
    """Return why no row of a module's weight can be held on its own; None where rows can be."""
    if not hasattr(module, "weight"):
        return None
    try:
        tensors_behind(module, _dim_of_units(module))
    except CoupledRowsError as error:
        return str(error)
    return None


def _dim_of_units(owner: nn.Module) -> int:
    return int(isinstance(owner, _TRANSPOSED) or _kind(owner) == "conv1d")


def _rows(name: str, weight: nn.Parameter, owner: Any, part: Part | None) -> Rows:
    if isinstance(owner, _TRANSPOSED):  # [in, out / groups, ...]
        if owner.groups == 1:
            return Rows(name, weight, (1,), part=part)
        return Rows(name, weight, (0, 2), ((0, (owner.groups, -1)),))
    return Rows(name, weight, (int(_kind(owner) == "conv1d"),), part=part)


def _lora_layers(name: str, module: Any, parts: Mapping[str, Part] | None) -> list[GatedLayer]:
    """The combined layer, then that of each active adapter's A."""
    adapters = active_adapters(module)
    owners = {join(name, "base_layer"): module.base_layer}
    owners |= {join(name, f"lora_B.{adapter}"): module.lora_B[adapter] for adapter in adapters}
    layers = _plain_layers(name, module, "lora", owners, parts)
    for adapter in adapters:
        if isinstance(module.lora_A[adapter], nn.Module):  # AdaLoRA has bare parameters
            layers += layers_of(join(name, f"lora_A.{adapter}"), module.lora_A[adapter])
    if any(layer.rows for layer in layers):
        check_lora(name, module, adapters)
    return layers


def _attention_layers(name: str, module: nn.MultiheadAttention) -> Iterator[GatedLayer]:
    weight, own = module.in_proj_weight, join(name, "in_proj")
    apart: tuple[str, ...] = QKV if weight is None else ()
    if weight is not None:
        rows = (Rows(join(name, "in_proj_weight"), weight),) if is_trained(weight) else ()
        source = Projection(QKV)
        yield GatedLayer(own, module, "attention", rows, source=source, blocks=(3,))
    for which in apart:
        weight, source = getattr(module, f"{which}_proj_weight"), Projection((which,))
        rows = (Rows(join(name, f"{which}_proj_weight"), weight),) if is_trained(weight) else ()
        yield GatedLayer(f"{own}.{which}", module, "attention", rows, source=source)
    source = Projection(("out",))
    (layer,) = _plain_layers(join(name, "out_proj"), module.out_proj, "attention")
    yield replace(layer, module=module, source=source)


def _recurrent_layers(name: str, module: Any) -> Iterator[GatedLayer]:
    if isinstance(module, nn.RNNCellBase):
        yield _hidden_units(name, module, name, ["weight_ih", "weight_hh"], 0)
        return
    directions = ["", "_reverse"] if module.bidirectional else [""]
    weights = ["weight_hr"] if module.proj_size else ["weight_ih", "weight_hh"]
    for index in range(module.num_layers * len(directions)):
        place = f"l{index // len(directions)}{directions[index % len(directions)]}"
        own = [f"{weight}_{place}" for weight in weights]
        yield _hidden_units(join(name, place), module, name, own, index)


def _hidden_units(name: str, module: Any, owner: str, weights: list[str], index: int) -> GatedLayer:
    """The hidden units of a layer and direction; each has a row in the matrix of each gate."""
    n = getattr(module, "proj_size", 0) or module.hidden_size
    parameters = {join(owner, weight): getattr(module, weight) for weight in weights}
    rows = tuple(
        Rows(weight, p, (1,), ((0, (-1, n)),)) for weight, p in parameters.items() if is_trained(p)
    )
    return GatedLayer(name, module, "recurrent", rows, source=Hidden(index))
