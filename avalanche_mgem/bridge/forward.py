"""What happens to a minibatch around the forward pass, and what of it is done to measured batches.

A memory's batch, or a probe's, goes through the strategy's own `_unpack_minibatch`, `forward` and
`criterion`. Some strategies do more to a minibatch in the events around them: SCR adds a second,
augmented view of each sample before the forward pass, and stacks the two outputs after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from avalanche.core import BasePlugin
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised.der import DER
from torch import Tensor, nn

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.wrapping import StrategyWrapper

_EVENTS = ("before_training_iteration", "before_forward", "after_forward")
# Where the methods are defined that do nothing to a minibatch but call the plugins, and where the
# plugins are that do nothing to it, or add samples.
_TEMPLATES = ("avalanche.core", "avalanche.training.templates")
_KNOWN_PLUGINS = ("avalanche.", "avalanche_mgem.")


def acts_around_forward(strategy: Strategy) -> bool:
    """Whether there is more to a strategy's loss than its forward pass and its criterion.

    That are the events of the strategy's own class around the forward pass, those of a criterion
    that is a plugin (iCaRL's looks at the minibatch with the old model), and what a criterion of
    the strategy's own adds on samples that it replays.
    """
    own = any(_overrides(strategy, name) for name in ("_before_forward", "_after_forward"))
    criterion = getattr(strategy, "_criterion", None)
    hears = isinstance(criterion, BasePlugin) and any(_has(criterion, e) for e in _EVENTS[1:])
    replays = hasattr(strategy, "replay_loader") and _overrides(strategy, "criterion")
    return own or hears or replays


def loss_of_minibatch(strategy: Strategy) -> Tensor:
    """Return the strategy's loss on its minibatch, which is unpacked.

    What other plugins do, and samples that a strategy replays, are no part of it. Of what the
    strategy's own events set of its attributes nothing stays.

    Raises:
        ValueError: the strategy's own `_before_forward` adds samples.
    """
    if not acts_around_forward(strategy):
        strategy.mb_output = strategy.forward()
        return cast(Tensor, strategy.criterion())
    with _alone(strategy):
        samples = _count(strategy)
        strategy._before_forward()
        if _count(strategy) != samples:
            raise ValueError(
                f"{type(strategy).__name__}._before_forward adds samples to a minibatch or drops "
                "some, so that the loss on a memory's batch would be that of other samples: let "
                "the data loader do that, as Avalanche's ReplayDataLoader does"
            )
        if isinstance(strategy, StrategyWrapper):
            strategy._is_own = False
        strategy.mb_output = strategy.forward()
        strategy._after_forward()
        return cast(Tensor, strategy.criterion())


@contextmanager
def _alone(strategy: Any) -> Iterator[None]:
    """No plugin hears the events inside but a criterion, and nothing is replayed."""
    saved = dict(vars(strategy))
    criterion = saved.get("_criterion")
    strategy.plugins = [criterion] if isinstance(criterion, BasePlugin) else []
    if "replay_loader" in saved:
        strategy.replay_loader = None
    try:
        yield
    finally:
        vars(strategy).clear()
        vars(strategy).update(saved)


def require_loss_of_past(strategy: Any) -> None:
    """Raise ValueError for a loss that says nothing about samples of past tasks.

    Known are those of Avalanche.
    """
    criterion = getattr(strategy, "_criterion", None)
    names = {parent.__name__ for parent in type(strategy).__mro__}
    if isinstance(criterion, MaskedCrossEntropy) and criterion.mask == "new":
        raise ValueError(
            "criterion=MaskedCrossEntropy(mask='new') is zero on samples of past tasks, so that "
            "a memory of them restricts nothing: take mask='seen' or 'all'"
        )
    if "LearningToPrompt" in names and getattr(strategy, "use_mask", False):
        raise ValueError(
            "LearningToPrompt(use_mask=True) gives samples of past tasks an infinite loss, which "
            "has no gradient: take use_mask=False"
        )
    if isinstance(strategy, DER) and type(criterion) is not nn.CrossEntropyLoss:
        raise ValueError(
            "DER trains with cross-entropy as soon as it replays, whatever its criterion, got "
            f"criterion={criterion!r}: the memory's gradients would be those of another loss"
        )


def watch_minibatch(strategy: Strategy) -> None:
    """Until each event's next call, refuse plugins that change minibatches or outputs there.

    A memory's batches do not pass those events. Plugins that add samples, as for replay, or drop
    some are let pass: the loss on a memory's batch is that of its own samples.
    """
    criterion = getattr(strategy, "_criterion", None)
    for plugin in strategy.plugins:
        passes = isinstance(plugin, EvaluationPlugin) or plugin is criterion
        if passes or not hasattr(plugin, "__dict__"):
            continue
        for event in _EVENTS:
            if event in vars(plugin) or _has(plugin, event, but=_KNOWN_PLUGINS):
                _Watched.put(plugin, event)
    if _overrides(strategy, "_before_training_iteration"):
        _Watched.put(strategy, "_before_training_iteration")


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
        samples, before = _count(strategy), _versions(strategy)
        result = getattr(self._owner, self._event)(*arguments, **named)
        known = {(id(leaf), version) for leaf, version in before}
        changed = any((id(leaf), version) not in known for leaf, version in _versions(strategy))
        if changed and _count(strategy) == samples:
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


def _count(strategy: Any) -> int | None:
    """How many targets there are; None: that cannot be said."""
    try:
        return len(strategy.mb_y)
    except (AssertionError, AttributeError, LookupError, TypeError):
        return None


def _overrides(strategy: Any, name: str) -> bool:
    """Whether a class of the user's, or of one of Avalanche's strategies, has this method.

    Our mixins only hand it on.
    """
    owners = [parent.__module__ for parent in type(strategy).__mro__ if name in vars(parent)]
    others = (module for module in owners if not module.startswith("avalanche_mgem."))
    return not next(others, _TEMPLATES[0]).startswith(_TEMPLATES)


def _has(plugin: Any, event: str, *, but: tuple[str, ...] = _TEMPLATES) -> bool:
    """Whether a plugin's class has an event of its own, defined elsewhere than in these modules."""
    method = getattr(type(plugin), event, None)
    return method is not None and not str(getattr(method, "__module__", "")).startswith(but)
