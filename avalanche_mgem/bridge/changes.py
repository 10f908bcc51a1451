"""Plugins that change minibatches where those of a memory, or of a probe, do not pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor

from avalanche_mgem.bridge.forward import defines_event, n_targets
from avalanche_mgem.bridge.strategy import Strategy

_EVENTS = ("before_training_iteration", "before_forward", "after_forward")
_PACKAGES = ("avalanche.", "avalanche_mgem.")


def watch_minibatch(strategy: Strategy) -> None:
    """Until the next call of each event, refuse plugins that change minibatches or outputs in it.

    Those that add samples, as for replay, or drop some are let pass: the loss on a measured batch
    is that of its own samples. Avalanche's plugins and ours do no more than that. A criterion that
    is a plugin hears of measured batches too, see `avalanche_mgem.bridge.forward`.
    """
    criterion = getattr(strategy, "_criterion", None)
    for plugin in strategy.plugins:
        passes = isinstance(plugin, EvaluationPlugin) or plugin is criterion
        if passes or not hasattr(plugin, "__dict__"):
            continue
        for event in _EVENTS:
            if event in vars(plugin) or _has_of_others(plugin, event):
                _Watched.put(plugin, event)
    if defines_event(type(strategy), "_before_training_iteration"):
        _Watched.put(strategy, "_before_training_iteration")


def _has_of_others(plugin: object, event: str) -> bool:
    """Whether a plugin has an event that was defined outside Avalanche and this package."""
    method = getattr(type(plugin), event, None)
    return method is not None and not str(method.__module__).startswith(_PACKAGES)


class _Watched:
    """Stands in for an object's method for one call, and compares the minibatch before and after.

    Raises:
        ValueError: in the call, the method has changed the minibatch or the output.
    """

    def __init__(self, owner: Any, event: str) -> None:
        self._owner, self._event = owner, event
        self._own = vars(owner).get(event)  # a method that the object has, and not its class

    @classmethod
    def put(cls, owner: Any, event: str) -> None:
        if not isinstance(vars(owner).get(event), cls):
            vars(owner)[event] = cls(owner, event)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        del vars(self._owner)[self._event]
        if self._own is not None:
            vars(self._owner)[self._event] = self._own
        strategy = arguments[0] if arguments else self._owner
        samples, before = n_targets(strategy), _versions(strategy)
        result = getattr(self._owner, self._event)(*arguments, **named)
        known = {(id(leaf), version) for leaf, version in before}
        changed = any((id(leaf), version) not in known for leaf, version in _versions(strategy))
        if changed and n_targets(strategy) == samples:
            raise ValueError(
                f"{type(self._owner).__name__}.{self._event} changes the minibatch or the model's "
                "output, and batches of a memory or a probe do not pass there: do it in the data "
                "set's transformations, a collate function, the model or the criterion"
            )
        return result


def _versions(strategy: Any) -> list[tuple[Any, int]]:
    """What minibatch and output consist of, and how often each tensor was changed in place."""
    leaves = [*_leaves(strategy.mbatch), *_leaves(strategy.mb_output)]
    return [
        (leaf, leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0)
        for leaf in leaves
    ]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
    elif value is not None and not isinstance(value, int | float | bool | str):
        yield value
