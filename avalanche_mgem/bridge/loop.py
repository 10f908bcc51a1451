"""Training loops that do not call what a plugin acts on, so that it would do nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from avalanche.training.templates.update_type import MetaUpdate, SGDUpdate

from avalanche_mgem.bridge.beside import refusal
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.lazy import is_lazy

OF_A_STEP = ("before_training_iteration", "after_backward", "before_update", "after_update")


class LoopWatch:
    """Notices that a strategy moves its parameters without calling a plugin's events.

        watch.start(strategy, plugin)         # before an experience
        watch.begin(strategy)                 # before an iteration
        watch.saw("after_backward")           # in each event
        watch.end(strategy, release)          # after an iteration, and after the experience

    Avalanche's loop for gradient descent calls all of them, and its meta-learning strategies none:
    these are told apart before training. A loop of somebody else's is watched until each event has
    come once.

    Raises:
        ValueError: `start`, for a strategy of Avalanche's meta-learning template.
        RuntimeError: `end`, parameters have moved, and an event has not come since `start`. No loop
            that accumulates gradients over iterations is refused, as it moves none in between.
    """

    def __init__(self) -> None:
        self._plugin: object = None
        self._missing: list[str] = []
        self._places: list[tuple[int, int]] = []  # of the parameters, when last looked at

    def __getstate__(self) -> dict[str, object]:
        return vars(LoopWatch())  # what a copy has missed is not known

    def start(
        self, strategy: Strategy, plugin: object, events: Collection[str] = OF_A_STEP
    ) -> None:
        """Begin an experience, in which `plugin` needs these events."""
        if events and isinstance(strategy, MetaUpdate):
            raise refusal(
                plugin,
                strategy,
                f"acts on {_listed(events)}, which the training loop of Avalanche's meta-learning "
                "strategies never calls, so that nothing would be restricted",
            )
        has_the_usual = getattr(type(strategy), "training_epoch", None) is SGDUpdate.training_epoch
        self._plugin = plugin
        self._missing = [] if has_the_usual else list(events)
        self.begin(strategy)

    def begin(self, strategy: Strategy) -> None:
        """Note where the parameters are."""
        if self._missing:
            self._places = _places(strategy)

    def saw(self, event: str) -> None:
        """Note that an event has come."""
        if event in self._missing:
            self._missing.remove(event)

    def end(self, strategy: Strategy, release: Callable[[], None]) -> None:
        """Compare; `release` is called before an error, to take off what the step has left."""
        if not self._missing or _places(strategy) == self._places:
            return
        release()
        missing = _listed(self._missing)
        raise RuntimeError(
            f"{type(self._plugin).__name__} does not go together with {type(strategy).__name__}: "
            f"its training loop has moved the parameters without calling the plugin's {missing}, "
            "as Avalanche's SupervisedTemplate does, so that nothing was restricted"
        )


def _places(strategy: Strategy) -> list[tuple[int, int]]:
    """Where each parameter is in memory, and how often it was written to."""
    parameters: list[Any] = [p for p in strategy.model.parameters() if not is_lazy(p)]
    return [(p.data_ptr(), p._version) for p in parameters]


def _listed(events: Collection[str]) -> str:
    *others, last = events
    return f"{', '.join(others)} and {last}" if others else last
