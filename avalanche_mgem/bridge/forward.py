"""What happens to a minibatch around the forward pass, and what of it is done to measured batches.

A memory's batch, or a probe's, goes through the strategy's own `_unpack_minibatch`, `forward` and
`criterion`. Some strategies do more to a minibatch in the events around them: SCR adds a second,
augmented view of each sample before the forward pass, and stacks the two outputs after it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

from avalanche.core import BasePlugin
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.supervised.der import DER
from torch import Tensor, nn

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.wrapping import StrategyWrapper

# Where events are defined that do nothing but call the plugins, and those of plugins that do
# nothing at all.
_TEMPLATES = ("avalanche.core", "avalanche.training.templates")
_OURS = "avalanche_mgem."


def acts_around_forward(strategy: Strategy) -> bool:
    """Whether there is more to a strategy's loss than its forward pass and its criterion.

    That are the events of the strategy's own class around the forward pass, those of a criterion
    that is a plugin (iCaRL's shows the minibatch to the old model), and what a criterion of the
    strategy's own adds on samples that it replays.
    """
    kind: Hashable = type(strategy)
    criterion = getattr(strategy, "_criterion", None)
    if defines_event(kind, "_before_forward") or defines_event(kind, "_after_forward"):
        return True
    if isinstance(criterion, BasePlugin):
        hears = cast(Hashable, type(criterion))
        if defines_event(hears, "before_forward") or defines_event(hears, "after_forward"):
            return True
    return hasattr(strategy, "replay_loader") and defines_event(kind, "criterion")


@lru_cache(maxsize=256)
def defines_event(kind: Any, event: str) -> bool:
    """Whether a class has an event, or method, of its own and not Avalanche's empty one.

    Our mixins of strategies only hand events on.
    """
    owners = [parent.__module__ for parent in kind.__mro__ if event in vars(parent)]
    others = (module for module in owners if not module.startswith(_OURS))
    return not next(others, _TEMPLATES[0]).startswith(_TEMPLATES)


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
        samples = n_targets(strategy)
        strategy._before_forward()
        if n_targets(strategy) != samples:
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


def n_targets(strategy: Any) -> int | None:
    """Return how many targets the minibatch has; None where that cannot be said."""
    try:
        return len(strategy.mb_y)
    except (AssertionError, AttributeError, LookupError, TypeError):
        return None


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
