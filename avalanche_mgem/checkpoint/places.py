"""The parts of a strategy that a user may hold too, by where they are in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any


def find_places(strategy: Any, plugins: Sequence[Any] | None = None) -> dict[str, Any]:
    """Return the objects that loading fills instead of making them anew, by their place.

    What is at several places has the last one. plugins: those of the strategy in other places.
    """
    modules = strategy.model.named_modules()
    plugins = lasting_plugins(strategy) if plugins is None else plugins
    places = {
        **{f"model.{name}" if name else "model": module for name, module in modules},
        "optimizer": strategy.optimizer,
        "criterion": strategy._criterion,
        **{f"plugins[{i}]": plugin for i, plugin in enumerate(plugins)},
        **{f"evaluator.metrics[{i}]": each for i, each in enumerate(strategy.evaluator.metrics)},
        "evaluator": strategy.evaluator,
        "strategy": strategy,
    }
    return {place: part for place, part in places.items() if _can_be_filled(part)}


def lasting_plugins(strategy: Any) -> list[Any]:
    """Return the plugins without those that stand among them for a moment of training only.

    Their classes say `transient = True`. An error in that moment leaves them there.
    """
    return [p for p in strategy.plugins if getattr(type(p), "transient", None) is not True]


def plugins_as(names: Sequence[str], strategy: Any) -> list[Any]:
    """Return the strategy's plugins in the order of these class names; None: there is none.

    Of two plugins of one class, the first one has the first place.
    """
    plugins = lasting_plugins(strategy)
    found = []
    for name in names:
        at = next((i for i, each in enumerate(plugins) if class_name(each) == name), None)
        found.append(None if at is None else plugins.pop(at))
    return found


def _can_be_filled(part: Any) -> bool:
    return hasattr(part, "__dict__") and not isinstance(part, type | FunctionType)


def class_name(part: Any) -> str:
    """The full name of an object's class; of a class or function, its own."""
    named = part if isinstance(part, type | FunctionType) else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def empty(part: Any) -> None:
    """Make an object as pickle finds one, unless its class says itself what its state is."""
    plain = getattr(object, "__getstate__", None)  # None before Python 3.11
    if getattr(type(part), "__getstate__", None) is plain:
        vars(part).clear()


@contextmanager
def undone_on_error(places: Mapping[str, Any]) -> Iterator[None]:
    """Give the objects their attributes back where filling them fails."""
    kept = [(part, dict(vars(part))) for part in places.values()]
    try:
        yield
    except BaseException:
        for part, attributes in kept:
            vars(part).clear()
            vars(part).update(attributes)
        raise
