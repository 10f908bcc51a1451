"""What of peft's LoRA layers takes part in the forward pass, by their attributes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def active_adapters(module: Any) -> list[str]:
    """Return the names of a LoRA layer's adapters that are added to its output."""
    if getattr(module, "disable_adapters", False):
        return []
    active = getattr(module, "active_adapters", None) or getattr(module, "active_adapter", None)
    active = [active] if isinstance(active, str) else active or []
    return [adapter for adapter in active if adapter in module.lora_A]


def check_lora(name: str, module: Any, adapters: Iterable[str]) -> None:
    """Raise ValueError for a LoRA layer whose A and B are not simply added to the base."""
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


def is_of_parameter(module: Any) -> bool:
    """Whether it is peft's wrapper of one parameter (`target_parameters`), around a LoRA layer.

    It calls neither A nor B, but adds their product to the parameter.
    """
    return hasattr(module, "lora_A") and hasattr(module, "parameter_name")
