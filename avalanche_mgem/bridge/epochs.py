"""The moment at which an epoch truly begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from avalanche_mgem.bridge.strategy import Strategy


def when_the_epoch_begins(strategy: Strategy, function: Callable[[Strategy], None]) -> None:
    """Call function(strategy) before the epoch's first iteration, if there is one.

    To be called in a plugin's `before_training_epoch`. The function runs behind all other plugins',
    any of which may stop the training there, as early stopping does: then what ends the experience
    comes next, and the function is not called.
    """
    strategy.plugins.append(_Last(function))


def forget_epoch(strategy: Strategy) -> None:
    """Take off what an epoch has left that an error ended before it truly began."""
    strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, _Last)]


class _Last(SupervisedPlugin):
    """Stands behind all plugins for the rest of one event."""

    transient = True  # no part of a checkpoint

    def __init__(self, function: Callable[[Strategy], None]) -> None:
        super().__init__()
        self.supports_distributed = True
        self._function = function

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        """Leave the strategy, and call the function unless the training stops."""
        # A new list: the plugins of this one are being called, and none must be passed over.
        strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not self]
        if not strategy._stop_training:
            self._function(strategy)
