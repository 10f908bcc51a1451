"""Who reads the gradients of a minibatch between its forward pass and the optimiser's step.

Where nobody does, a plugin may have those of the rows that it masks left out.
"""

from __future__ import annotations

from operator import is_
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.update_type.sgd_update import SGDUpdate

from avalanche_mgem.bridge.precision import MixedPrecision
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.wrapping import StrategyWrapper
from avalanche_mgem.model.distributed import unwrapped

# From the forward pass to the mask: here a plugin can add a second backward pass, or read what the
# first has made.
_EVENTS = ("before_forward", "after_forward", "before_backward", "after_backward", "before_update")
_STEP = (*(f"_{event}" for event in _EVENTS), "forward", "criterion", "backward", "loss")
_NAMES = (*_EVENTS, *_STEP)
# Where functions are that are known to do none of that.
_OF_PLUGINS = ("avalanche.core",)
_OF_METRICS = ("avalanche.", "avalanche_mgem.")
_OF_STRATEGIES = ("avalanche.training.templates.", StrategyWrapper.__module__)
_LATER = ("avalanche_mgem.plugins.clipping",)  # acts as the step begins


def why_whole(strategy: Strategy, own: object) -> str:
    """Return why the gradients of this minibatch must be whole; "": nobody reads them.

    Known to be harmless are strategies with the loop of Avalanche's SupervisedTemplate, one forward
    and one backward pass, and plugins that do nothing in between.

    Args:
        strategy: in its iteration.
        own: the plugin that asks.
    """
    kind = type(strategy)
    if getattr(kind, "training_epoch", None) is not SGDUpdate.training_epoch:
        return f"the training loop of {kind.__name__}"
    if unwrapped(strategy.model) is not strategy.model:
        return "a model that is wrapped"
    if getattr(strategy, "precision", None) == "fp16" and isinstance(strategy, MixedPrecision):
        return "gradients that are scaled"  # masked rows that overflow must be seen
    trusted = (*_OF_STRATEGIES, *_of_precision(strategy))
    for name in _STEP:
        if not _is_of(trusted, strategy, name):
            return f"{name} of {kind.__name__}"
    for plugin in strategy.plugins:
        if plugin is not own and (found := _reader(plugin)):
            return found
    return ""


class GradientReaders:
    """`why_whole` of an experience: it is asked again where what it looks at has changed.

    It keeps what it has looked at alive; a copy or a pickle does not.
    """

    def __init__(self) -> None:
        self._seen: list[object] = []
        self._why = ""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_seen": []}

    def why(self, strategy: Strategy, own: object) -> str:
        """Return why the gradients of this minibatch must be whole; "": nobody reads them."""
        seen = _looked_at(strategy)
        if len(seen) != len(self._seen) or not all(map(is_, seen, self._seen)):
            self._seen, self._why = seen, why_whole(strategy, own)
        return self._why


def _looked_at(strategy: Strategy) -> list[object]:
    """The objects that act in a step, and the functions of their own that they have instead."""
    actors: list[Any] = [strategy, *strategy.plugins]
    for plugin in strategy.plugins:
        if isinstance(plugin, EvaluationPlugin):
            actors += *plugin.metrics, *plugin.loggers
    found: list[object] = [strategy.model, *actors]
    for actor in actors:
        own = getattr(actor, "__dict__", {})
        found += [own[name] for name in _NAMES if name in own and callable(own[name])]
    return found


def _of_precision(strategy: Strategy) -> tuple[str, ...]:
    return (MixedPrecision.__module__,) if isinstance(strategy, MixedPrecision) else ()


def _reader(plugin: Any) -> str:
    """The class of the plugin, or of what it calls, that acts in between; "": it does not."""
    if isinstance(plugin, EvaluationPlugin):
        called = [*plugin.metrics, *plugin.loggers]
        return next((type(each).__name__ for each in called if _acts(each, _OF_METRICS)), "")
    if type(plugin).__module__ in _LATER or not _acts(plugin, _OF_PLUGINS):
        return ""
    return type(plugin).__name__


def _acts(plugin: Any, trusted: tuple[str, ...]) -> bool:
    return not all(_is_of(trusted, plugin, event) for event in _EVENTS)


def _is_of(trusted: tuple[str, ...], owner: Any, name: str) -> bool:
    """Whether an object has no such function of its own but one of these modules."""
    if name in getattr(owner, "__dict__", {}):
        return not callable(vars(owner)[name])
    function = getattr(type(owner), name, None)
    return function is None or str(getattr(function, "__module__", "")).startswith(trusted)
