"""Methods put together: "replay+migu" is Avalanche's Naive with the plugins of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.training import plugins as theirs
from avalanche.training import supervised

from avalanche_mgem.huggingface.lora import LoRAPlugin, OLoRAPlugin
from avalanche_mgem.methods.combination import Combination, Part
from avalanche_mgem.methods.method import Method
from avalanche_mgem.plugins import MGEMPlugin, MIGUPlugin

JOINT = "+"

# Of the paper (arXiv 2406.17245): less is masked where something else holds the model as well.
_MASKED_BESIDE: tuple[tuple[Any, float], ...] = (
    (OLoRAPlugin, 0.1),
    (theirs.ReplayPlugin, 0.4),
)


def agem_plugin(patterns_per_exp: int, sample_size: int) -> Any:
    """Return Avalanche's AGEMPlugin by the names that the settings of its strategy have."""
    return theirs.AGEMPlugin(patterns_per_exp, sample_size)


def gem_plugin(patterns_per_exp: int, memory_strength: float = 0.5) -> Any:
    """Return Avalanche's GEMPlugin by the names that the settings of its strategy have."""
    return theirs.GEMPlugin(patterns_per_exp, memory_strength)


_PLUGIN_OF: dict[Any, Any] = {
    supervised.Replay: theirs.ReplayPlugin,
    supervised.EWC: theirs.EWCPlugin,
    supervised.AGEM: agem_plugin,
    supervised.GEM: gem_plugin,
}


def combined(name: str, methods: Sequence[Method]) -> Method:
    """Return the method that has the plugins of all `methods`, under the name `name`.

    Adapters come first, because they add parameters; then what has a memory or a penalty; then what
    projects the gradient; MIGU last, so that nothing moves what it holds still. The settings are
    those of the methods, but for MIGU's mask_fraction: beside replay or O-LoRA it is the paper's
    for that. A setting that several of them have goes by method and name, as "mgem-d.seed".

    Raises:
        ValueError: a method that is no plugin to plain training, a plugin that comes twice.
    """
    owned = {part.name: (part, method) for method in methods for part in _parts(name, method)}
    parts = sorted((part for part, _ in owned.values()), key=_place)
    _require_one_of_each(name, methods, parts)
    strategy = Combination(tuple(parts))
    settings = {
        strategy.setting_name(f"{part.name}.{own}"): value
        for part, method in owned.values()
        for own, value in method.settings.items()
    }
    description = " and ".join(method.name for method in methods) + " together"
    settings = {**settings, **_less_masked(parts)}
    return Method(name, strategy, settings, description, strategy.check)


def _parts(name: str, method: Method) -> tuple[Part, ...]:
    strategy = method.strategy
    if isinstance(strategy, Combination):
        return strategy.parts
    plugin = getattr(strategy, "PLUGIN", None) or _PLUGIN_OF.get(strategy)
    if plugin is None:
        raise ValueError(
            f"methods: {name!r} cannot be had, because {method.name!r} is no plugin to plain "
            "training; what is: replay, ewc, si, lwf, agem, gem, initialized, frozen, hybrid, and "
            "what begins with mgem or migu or ends with lora"
        )
    return (Part(method.name, plugin, method.check),)


def _place(part: Part) -> int:
    if _is(part, LoRAPlugin):
        return 0
    if _is(part, MIGUPlugin):
        return 3
    return 2 if part.plugin in (agem_plugin, gem_plugin) or _is(part, MGEMPlugin) else 1


def _is(part: Part, kind: type[Any]) -> bool:
    return isinstance(part.plugin, type) and issubclass(part.plugin, kind)


def _require_one_of_each(name: str, methods: Sequence[Method], parts: Sequence[Part]) -> None:
    kinds = [LoRAPlugin if _is(part, LoRAPlugin) else part.plugin for part in parts]
    if len(parts) < len(methods) or any(kinds.count(kind) > 1 for kind in kinds):
        raise ValueError(
            f"methods: {name!r} cannot be had, because two of its parts are the same method or "
            "variants of one"
        )


def _less_masked(parts: Sequence[Part]) -> Mapping[str, float]:
    if not any(_is(part, MIGUPlugin) for part in parts):
        return {}
    beside = [share for kind, share in _MASKED_BESIDE if any(_is(part, kind) for part in parts)]
    return {"mask_fraction": beside[0]} if beside else {}
