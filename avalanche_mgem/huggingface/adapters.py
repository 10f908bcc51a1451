"""Low-rank adapters of peft in a model as it stands: which layers take them, and which train.

The model is changed in place and keeps its class and the signature of its forward: there is no
PeftModel around it. A layer with adapters takes the place, and the name, of the layer it is made
of, which is its `base_layer`.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_mgem.arguments import bounded_int, finite, flag
from avalanche_mgem.huggingface.adaptable import adapted_names
from avalanche_mgem.huggingface.loading import require
from avalanche_mgem.huggingface.undoing import all_or_nothing
from avalanche_mgem.model.heads import Heads, check_heads
from avalanche_mgem.model.layers import find_heads
from avalanche_mgem.model.randomness import RandomStream
from avalanche_mgem.model.targets import (
    TargetModules,
    check_target_modules,
    inside,
    is_lora,
)
from avalanche_mgem.model.tuners import adapter_kinds

_NOTHING = "(?!)"  # a regular expression that matches nothing
_MOST_LISTED = 12

_KNOWN_WARNINGS = (
    # Said to those who may not know that there are adapters already.
    "Already found a `peft_config`",
    # Which way round a layer's weight lies peft sees by itself, and tells.
    "fan_in_fan_out is set to",
    # That the pattern which matches nothing is another than the layers of the state dict.
    "While injecting the PEFT adapters, an inconsistency",
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


def require_own(model: nn.Module, names: list[str], plugin: object) -> None:
    """Raise ValueError where a model has adapters of other names or kinds, or merged ones."""
    others = {kind: where for kind, where in adapter_kinds(model).items() if kind != "LoRA"}
    if others or adapter_names(model) != names:
        known = ", ".join(adapter_names(model) or others)
        raise ValueError(
            f"model has adapters already, {known}, which {type(plugin).__name__} did not make: "
            "merge them into the model first (peft's merge_and_unload)"
        )
    merged = [name for name, layer in lora_layers(model).items() if layer.merged]
    if merged:
        raise ValueError(
            f"the adapters of {', '.join(merged[:3])} and others are merged into the weights: "
            "unmerge them before training on"
        )


def add_adapter(
    model: nn.Module, name: str, adapter: Adapter, *, seed: int, device: torch.device
) -> None:
    """Put an adapter into `model`, beside those that are there; it trains, and so do heads.

    The new adapter says nothing until it is trained (B is zero), and all adapters are active: their
    outputs add up. Earlier ones are frozen, and with the first all of the model but its heads.
    Whatever the model gets later is left alone. Global random states are left as they are. Where
    anything fails, the model is as it was.

    Args:
        model: that is changed.
        name: of the adapter, which the model must not have yet.
        adapter: what it is like. Where there are adapters, theirs are the layers of this one.
        seed: of the A matrices, peft's default: Kaiming uniform.
        device: of the strategy, whose random state is preserved too.

    Raises:
        ValueError: no layer can take an adapter, a name or pattern matches nothing, or peft refuses
            a layer or adapts others than those that are meant.
    """
    before = lora_layers(model)
    earlier = {id(p) for layer in before.values() for p in _adapter_parameters(layer)}
    trained = {id(p) for p in _trained(model, adapter, whole=bool(before))} - earlier
    targets = list(before) or adapted_names(
        model, adapter.target_modules, adapter.heads, rank=adapter.rank
    )
    with all_or_nothing(model):
        with RandomStream(seed).active(device):
            _inject(model, name, adapter, targets)
        active = adapter_names(model)
        for layer in lora_layers(model).values():
            layer.set_adapter(active)
            trained |= {id(p) for p in _adapter_parameters(layer, name)}
        _train_only(model, trained)


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


def _inject(model: nn.Module, name: str, adapter: Adapter, targets: list[str]) -> None:
    """Have peft put an adapter into each of `targets`, and into nothing else."""
    peft = require("peft")
    has_adapters = bool(lora_layers(model))
    # A regular expression: a name in a list would match all names that end with it.
    pattern = "|".join(map(re.escape, targets))
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=pattern,
    )
    exactly: dict[str, Any] = {}
    if "state_dict" in inspect.signature(peft.inject_adapter_in_model).parameters:
        # In mixtures of experts peft (0.19 and newer) takes a pattern for the last parts of the
        # names that it matches, or for parameters of the experts. A state dict is not reinterpreted
        # where the pattern matches nothing.
        config.target_modules = _NOTHING
        exactly["state_dict"] = dict.fromkeys(f"{target}.lora_A.weight" for target in targets)
    with warnings.catch_warnings():
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            peft.inject_adapter_in_model(config, model, adapter_name=name, **exactly)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            # A layer of adapters has the new one in half, any other has not been replaced.
            n_done = len(_having(model, name)) - has_adapters
            failed = targets[min(max(n_done, 0), len(targets) - 1)]
            raise ValueError(
                f"target_modules: peft puts no adapter of rank={adapter.rank} into {failed!r}: "
                f"{error}"
            ) from error
    config.target_modules = pattern
    if (adapted := _having(model, name)) != targets:
        raise ValueError(
            f"target_modules: peft adapts {_listed(adapted)} where {_listed(targets)} are meant; "
            "name layers that it adapts alike, such as the last part of a name in all blocks"
        )


def _having(model: nn.Module, adapter: str) -> list[str]:
    """Return the names of the layers that have an adapter of this name."""
    return [name for name, layer in lora_layers(model).items() if adapter in layer.lora_A]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"{len(names)} layers ({', '.join(names[:_MOST_LISTED])}{more})"


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
