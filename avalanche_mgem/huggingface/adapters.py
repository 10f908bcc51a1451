"""Low-rank adapters of peft in a model as it stands: which layers take them, and which train.

The model is changed in place and keeps its class and the signature of its forward: there is no
PeftModel around it. A layer with adapters takes the place, and the name, of the layer it is made
of, which is its `base_layer`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_mgem.arguments import bounded_int, finite, flag
from avalanche_mgem.huggingface.loading import require
from avalanche_mgem.model.heads import Heads, check_heads
from avalanche_mgem.model.layers import find_heads
from avalanche_mgem.model.randomness import RandomStream
from avalanche_mgem.model.targets import (
    TargetModules,
    check_target_modules,
    inside,
    is_lora,
    target_names,
)


@dataclass(frozen=True)
class Adapter:
    """What an adapter is like; see `avalanche_mgem.huggingface.LoRAPlugin` for the arguments.

    Raises:
        ValueError: an argument out of range.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: TargetModules
    train_heads: bool
    heads: Heads

    def __post_init__(self) -> None:
        # As peft writes them into JSON, which knows nothing of NumPy's numbers.
        object.__setattr__(self, "rank", bounded_int("rank", self.rank))
        object.__setattr__(self, "alpha", finite("alpha", self.alpha, minimum=0, above=True))
        object.__setattr__(self, "dropout", finite("dropout", self.dropout, minimum=0))
        if self.dropout >= 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        object.__setattr__(self, "train_heads", flag("train_heads", self.train_heads))
        check_heads(self.heads)
        check_target_modules(self.target_modules)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of `model` that have adapters, by name, in module order."""
    return {name: module for name, module in model.named_modules() if is_lora(module)}


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of the adapters in `model`, in the order in which they were added."""
    layers = lora_layers(model).values()
    return list(dict.fromkeys(name for layer in layers for name in layer.lora_A))


def add_adapter(
    model: nn.Module, name: str, adapter: Adapter, *, seed: int, device: torch.device
) -> None:
    """Put an adapter into `model`, beside those that are there; it trains, and so do heads.

    The new adapter says nothing until it is trained (B is zero), and all adapters are active: their
    outputs add up. Earlier ones are frozen, and with the first all of the model but its heads.
    Whatever the model gets later is left alone. Global random states are left as they are.

    Args:
        model: that is changed.
        name: of the adapter, which the model must not have yet.
        adapter: what it is like. Where there are adapters, theirs are the layers of this one.
        seed: of the A matrices, peft's default: Kaiming uniform.
        device: of the strategy, whose random state is preserved too.

    Raises:
        ValueError: no layer can take an adapter, or a name or pattern matches nothing.
    """
    peft = require("peft")
    before = lora_layers(model)
    earlier = {id(p) for layer in before.values() for p in _adapter_parameters(layer)}
    trained = {id(p) for p in _trained(model, adapter, whole=bool(before))} - earlier
    targets = list(before) or adapted_names(model, adapter.target_modules, adapter.heads)
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        # A regular expression: a name in a list would match all names that end with it.
        target_modules="|".join(map(re.escape, targets)),
    )
    with RandomStream(seed).active(device), warnings.catch_warnings():
        # Said to those who may not know that there are adapters already.
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        # Which way round a layer's weight lies peft sees by itself, and tells.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        peft.inject_adapter_in_model(config, model, adapter_name=name)
    active = adapter_names(model)
    for layer in lora_layers(model).values():
        layer.set_adapter(active)
        trained |= {id(p) for p in _adapter_parameters(layer, name)}
    _train_only(model, trained)


def adapted_names(
    model: nn.Module, target_modules: TargetModules, heads: Heads = None
) -> list[str]:
    """Return the names of the layers of `model` that get adapters, in module order.

    Args:
        model: without adapters yet.
        target_modules: see `avalanche_mgem.huggingface.LoRAPlugin`.
        heads: the output heads, which get none.

    Raises:
        ValueError: there is no such layer, or a name or pattern matches nothing.
    """
    tops = find_heads(model, heads)
    layers = dict(_adaptable(model))
    free = {n: m for n, m in layers.items() if not any(inside(n, top) for top in tops)}
    if not free:
        raise ValueError(
            "model has no layer that can take an adapter, which are Linear, Conv2d and Conv1D and "
            f"no output heads; heads: {', '.join(tops) or 'none'}"
        )
    if target_modules is None and (usual := _usual(model, free)):
        return usual
    return target_names(model, free, target_modules)


def freeze_heads(model: nn.Module, heads: Heads = None) -> None:
    """Freeze the output heads of `model`, those that have come since too."""
    for head in find_heads(model, heads):
        for parameter in model.get_submodule(head).parameters():
            _freeze(parameter)


def give_to(optimizer: Optimizer, model: nn.Module) -> None:
    """Give `optimizer` what it lacks of the adapters, and have it forget what is frozen.

    An adapter joins the group of its layer's weight, or else the first one. Avalanche itself adds
    new parameters, but fails where a layer's weight and bias are in different groups.
    """
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for layer in lora_layers(model).values():
        weight = getattr(layer.base_layer, "weight", None)
        group = group_of.get(id(weight), optimizer.param_groups[0])
        new = [p for p in _adapter_parameters(layer) if p.requires_grad and id(p) not in group_of]
        group["params"].extend(new)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            optimizer.state.pop(parameter, None)


def _adapter_parameters(layer: Any, name: str | None = None) -> Iterator[nn.Parameter]:
    """The A and B of an adapter, or of all in the layer."""
    for adapters in (layer.lora_A, layer.lora_B):
        for adapter, module in adapters.items():
            if name in (None, adapter):
                yield from module.parameters()


def _trained(model: nn.Module, adapter: Adapter, *, whole: bool) -> Iterator[nn.Parameter]:
    """What trains now, of the whole model or of its heads, and shall do so beside the adapter."""
    for top in [""] if whole else _trained_heads(model, adapter):
        yield from (p for p in model.get_submodule(top).parameters() if p.requires_grad)


def _trained_heads(model: nn.Module, adapter: Adapter) -> list[str]:
    """Return the heads that train: of those that are not named, not a language model's own."""
    if not adapter.train_heads:
        return []
    tops = find_heads(model, adapter.heads)
    if adapter.heads is not None:
        return tops
    pretrained = list(_output_embeddings(model))
    return [top for top in tops if not any(inside(name, top) for name in pretrained)]


def _output_embeddings(model: nn.Module) -> Iterator[str]:
    names = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        get_output: Any = getattr(module, "get_output_embeddings", None)
        if get_output is not None and (output := id(get_output())) in names:
            yield names[output]


def _adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that could take an adapter. Parts of nn.MultiheadAttention are never called."""
    closed: str | None = None
    for name, module in model.named_modules():
        if closed is not None and inside(name, closed):
            continue
        if isinstance(module, nn.MultiheadAttention):
            closed = name
        elif isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__ == "Conv1D":
            yield name, module


def _usual(model: nn.Module, free: dict[str, nn.Module]) -> list[str]:
    """Return the layers that peft takes in models of this kind; none where it knows it not."""
    from peft.utils import constants

    known: dict[str, Any] = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for module in model.modules():
        targets = known.get(getattr(getattr(module, "config", None), "model_type", None) or "")
        if isinstance(targets, str):
            return [name for name in free if re.fullmatch(targets, name)]
        if targets:
            # By the last part: which of the names a model has differs between its versions.
            return [name for name in free if name.rpartition(".")[2] in targets]
    return []


def _train_only(model: nn.Module, trained: set[int]) -> None:
    for parameter in model.parameters():
        if id(parameter) in trained:
            parameter.requires_grad_(True)
        else:
            _freeze(parameter)


def _freeze(parameter: nn.Parameter) -> None:
    # A gradient from before would move it still: optimisers look at the gradient alone.
    parameter.requires_grad_(False)
    parameter.grad = None
