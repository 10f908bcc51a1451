"""Mixins that change how a strategy computes its gradients, and not when its plugins are called."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.update_type.sgd_update import SGDUpdate

from avalanche_mgem.bridge.strategy import StrategyBase


class StrategyWrapper(StrategyBase):
    """The base of `MixedPrecision` and `GradientAccumulation`.

    A strategy's `forward` is called for the minibatch of an iteration, and also by whoever measures
    a gradient: the memory of mGEM, the probes of the hybrid strategy. Here the two are told apart:
    what a mixin does with a forward pass it does in `_forward(own)`.

    Raises:
        TypeError: the strategy has a training loop of its own, which calls other things than
            `forward`, `criterion`, `backward` and `optimizer_step`, or in another order.
    """

    def __init__(self, **options: Any) -> None:
        check_loop(type(self))
        super().__init__(**options)
        self._is_own = False  # whether the next forward pass is that of the iteration's minibatch

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by for the backward pass."""
        return 1.0

    def _before_forward(self, **kwargs: Any) -> None:
        super()._before_forward(**kwargs)
        self._is_own = True

    def forward(self) -> Any:
        """Compute the model's output for the current minibatch."""
        own, self._is_own = self._is_own, False
        return self._forward(own)

    def _forward(self, own: bool) -> Any:
        return super().forward()

    def __reduce_ex__(self, protocol: Any) -> Any:
        made_from = type(self).__dict__.get("_made_from")
        if made_from is None:
            return super().__reduce_ex__(protocol)
        # The class has no name to be found by. What it was made from may have none either, but an
        # instance of that knows how to pickle itself.
        mixin = type(self).__dict__["_made_by"]
        return _empty, (mixin, made_from.__new__(made_from)), self.__dict__


def wrapped(mixin: type[StrategyWrapper], strategy: type[Any]) -> Any:
    """Return the class of a strategy with a mixin in front of it; the same class each time.

    Its instances can be pickled and copied.

    Raises:
        ValueError: `strategy` is no class of a supervised strategy.
        TypeError: it has a training loop of its own.
    """
    if not (isinstance(strategy, type) and issubclass(strategy, SupervisedTemplate)):
        raise ValueError(f"strategy must be a class such as Naive or Replay, got {strategy!r}")
    check_loop(strategy)
    base: Any = strategy
    return base if issubclass(base, mixin) else _made(cast(Any, mixin), base)


def check_loop(strategy: type[Any]) -> None:
    """Raise TypeError where a strategy's class has a training loop of its own."""
    if strategy.training_epoch is not SGDUpdate.training_epoch:
        raise TypeError(
            f"{strategy.__name__} has a training loop of its own: mixed precision and accumulation "
            "take strategies with the loop of Avalanche's SupervisedTemplate"
        )


@cache
def _made(mixin: Any, strategy: Any) -> Any:
    namespace = {
        "_made_by": mixin,
        "_made_from": strategy,
        "__doc__": strategy.__doc__,
        "__module__": __name__,
    }
    return type(f"{mixin.__name__}{strategy.__name__}", (mixin, strategy), namespace)


def _empty(mixin: type[StrategyWrapper], made_from: Any) -> Any:
    """A strategy as pickle fills it."""
    made = wrapped(mixin, type(made_from))
    return made.__new__(made)
