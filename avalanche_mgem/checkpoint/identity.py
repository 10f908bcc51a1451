"""What a checkpoint is of: told in its file, and compared before anything is loaded."""

from __future__ import annotations

import inspect
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.places import class_name, lasting_plugins, plugins_as
from avalanche_mgem.checkpoint.replaced import replaced_in_training
from avalanche_mgem.moved import present_name

_PACKAGES = ("torch", "avalanche-lib", "avalanche-mgem", "numpy")
_NUMBERS = ("train_mb_size", "train_epochs", "eval_mb_size")
_OURS = f"{__name__.partition('.')[0]}."
_NEEDED = ("model", "optimizer", "_criterion", "plugins", "evaluator", "clock", "device")


def check_strategy(strategy: Any) -> None:
    """Raise ValueError for what is no Avalanche strategy."""
    missing = [name for name in _NEEDED if not hasattr(strategy, name)]
    if missing:
        raise ValueError(
            "strategy must be one of Avalanche's, such as a SupervisedTemplate; "
            f"{type(strategy).__name__} has no {', '.join(missing)}"
        )


def identity(strategy: Any, plugins: Sequence[Any] | None = None) -> dict[str, Any]:
    """Return what tells one run's checkpoint from another's, as JSON values.

    "classes" must be the same where it is loaded, but for those that training has "replaced";
    "settings" and "versions" had better be. plugins: those whose settings are told, in the places
    that they have in the checkpoint.
    """
    plugins = lasting_plugins(strategy) if plugins is None else plugins
    defaults = getattr(strategy.optimizer, "defaults", {})  # None is an optimiser too
    return {
        "classes": {
            "strategy": class_name(strategy),
            "optimizer": class_name(strategy.optimizer),
            "criterion": class_name(strategy._criterion),
            "plugins": [class_name(plugin) for plugin in lasting_plugins(strategy)],
            "metrics": [class_name(metric) for metric in strategy.evaluator.metrics],
        },
        "settings": {
            "model": class_name(strategy.model),
            **{name: getattr(strategy, name) for name in _NUMBERS if hasattr(strategy, name)},
            **{f"optimizer.{k}": repr(v) for k, v in defaults.items()},
            **{
                f"plugins[{i}].{name}": value
                for i, plugin in enumerate(plugins)
                for name, value in _arguments(plugin).items()
            },
        },
        "replaced": sorted(replaced_in_training(strategy)),
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in _PACKAGES}},
        "device": str(strategy.device),
    }


def compare(path: Any, told: Mapping[str, Any], strategy: Any) -> list[Any]:
    """Compare what a checkpoint tells with the strategy that it is to be loaded into.

    Returns:
        The strategy's plugins in their places in the checkpoint; None where there is none.

    Raises:
        CheckpointError: it is of another strategy, or of other plugins or metrics.
    """
    saved = {what: _present(names) for what, names in told["classes"].items()}
    plugins = plugins_as(saved["plugins"], strategy)
    here = identity(strategy, plugins)
    differing = [what for what, names in saved.items() if names != here["classes"][what]]
    # Training may put another class in the place of what the strategy was made with.
    replaced = {*told.get("replaced", ()), *here["replaced"]}
    for what in differing:
        if what not in replaced:
            raise CheckpointError(
                f"{path} is of another run: its {what}: {_listed(saved[what])}; the {what} of the "
                f"strategy to load it into: {_listed(here['classes'][what])}"
            )
    settings = here["settings"]
    if "optimizer" in differing:
        settings = {k: v for k, v in settings.items() if not k.startswith("optimizer.")}
    _warn_of("settings", "the checkpoint's settings hold, not the strategy's", path, told, settings)
    _warn_of("versions", "saved by other versions", path, told, here["versions"])
    return plugins


def _present(names: str | list[str]) -> Any:
    """The names that classes have now."""
    return present_name(names) if isinstance(names, str) else list(map(present_name, names))


def device_map(path: Any, saved: str, device: torch.device) -> Callable[[str], str]:
    """Return the function from a device when saved, to that now: accelerators to `device`.

    Raises:
        CheckpointError: the run was on the CPU and is to go on elsewhere. What a step needs there
            and what stays in memory cannot be told apart.
    """
    before = torch.device(saved)
    if before.type == "cpu" and device.type != "cpu":
        raise CheckpointError(
            f"{path} is of a run on the CPU: make the strategy with device='cpu', got {device}"
        )
    moves = before.type if before != device else None

    def now(name: str) -> str:
        return str(device) if name.split(":", maxsplit=1)[0] == moves else name

    return now


def _arguments(part: Any, *, deep: bool = True) -> dict[str, str]:
    """The plain values that a plugin was made with, as far as it keeps them under their names.

    Others of its attributes may change in training, as counters do. deep: in the parts of our
    plugins, too, which keep some for them.
    """
    names = _parameters(type(part))
    found = {}
    for name in names:
        try:
            value = getattr(part, name)
        except Exception:  # not kept, or a property that cannot say yet
            continue
        if _is_plain(value):
            found[name] = repr(value)
    for name, inner in getattr(part, "__dict__", {}).items() if deep else ():
        record = is_dataclass(inner) or isinstance(inner, tuple)  # of what has happened, mostly
        if type(inner).__module__.startswith(_OURS) and (name in names or not record):
            for each, shown in _arguments(inner, deep=False).items():
                if each not in names:
                    found[f"{name.lstrip('_')}.{each}"] = shown
                else:
                    found.setdefault(each, shown)
    return found


def _parameters(made: type) -> list[str]:
    """The names that the constructors of a class and of those that it is made from take."""
    names: dict[str, None] = {}
    for each in made.__mro__:
        if inspect.isfunction(function := vars(each).get("__init__")):
            names |= dict.fromkeys(list(inspect.signature(function).parameters)[1:])
    # Who gives no seed has a new one each time, and draws go on from the checkpoint's in any case.
    return [name for name in names if not name.startswith("_") and name != "seed"]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _warn_of(
    part: str, what: str, path: Any, told: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    saved = told[part]
    changes = [
        f"{name} {saved[name]} -> {value}"
        for name, value in now.items()
        if name in saved and saved[name] != value
    ]
    if changes:
        warnings.warn(f"{path}: {what}: {', '.join(changes)}", stacklevel=4)


def _listed(names: Any) -> str:
    return names if isinstance(names, str) else ", ".join(names) or "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
