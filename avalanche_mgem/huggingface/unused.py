"""Adapters that do not train because the forward of their layer is never called."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from avalanche_mgem.huggingface.adapters import lora_layers
from avalanche_mgem.model.targets import TargetModules

_MOST_LISTED = 8


def require_gradients(
    model: nn.Module, adapter: str, target_modules: TargetModules, *, zero_is_none: bool = False
) -> None:
    """Look at the gradients of an adapter's first step, and name those layers that have none.

    Some layers are read and not called: the weight of a cosine head, of Mamba's dt_proj, of
    attention in torchvision's Swin Transformer. An adapter on these has no effect.

    Args:
        model: after its first backward pass with the adapter.
        adapter: its name.
        target_modules: as they were given, see `avalanche_mgem.huggingface.LoRAPlugin`.
        zero_is_none: whether a gradient of zeros counts as none, as where a penalty on the
            adapter gives it one.

    Raises:
        ValueError: a target that was named has layers without a gradient only. Any other layers
            without one are told by a warning.
        RuntimeError: no layer has a gradient.
    """
    trained = {
        name: layer.lora_B[adapter].weight
        for name, layer in lora_layers(model).items()
        if adapter in layer.lora_B and layer.lora_B[adapter].weight.requires_grad
    }
    unused = [name for name, weight in trained.items() if _has_none(weight, zero_is_none)]
    if not unused:
        return
    cause = "the model does not call the forward of these layers, but reads their weights at most"
    for target, layers in _named(target_modules, list(trained)):
        if layers and set(layers) <= set(unused):
            raise ValueError(
                f"target_modules: {target!r} names {_listed(layers)}, whose adapters had no "
                f"gradient in the first step: {cause}; leave it out"
            )
    if len(unused) == len(trained):
        raise RuntimeError(
            "no adapter had a gradient in the first step: the loss does not follow from the "
            f"outputs of {_listed(unused)}, or gradient checkpointing with use_reentrant=True cuts "
            "them off from it"
        )
    warnings.warn(
        f"{len(unused)} of {len(trained)} adapters had no gradient in the first step and may never "
        f"train, {_listed(unused)}: {cause}. target_modules can leave them out",
        stacklevel=2,
    )


def _has_none(weight: Any, zero_is_none: bool) -> bool:
    gradient: Tensor | None = weight.grad
    return gradient is None or (zero_is_none and not bool(gradient.any()))


def _named(target_modules: TargetModules, layers: list[str]) -> list[tuple[str, list[str]]]:
    """Return each target that a user has named, with its layers."""
    if target_modules is None or target_modules == "all-linear":
        return []
    if isinstance(target_modules, str):
        return [(target_modules, layers)]
    return [
        (target, [name for name in layers if f".{name}".endswith(f".{target}")])
        for target in target_modules
    ]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
