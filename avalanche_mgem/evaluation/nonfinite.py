"""How many steps were left out because something was not finite, as a metric."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_mgem.bridge.strategy import Strategy


@runtime_checkable
class ShowsSkippedSteps(Protocol):
    """A plugin that leaves out steps that are not finite, and counts them."""

    @property
    def skipped_steps(self) -> int:
        """How many it has left out so far."""


class SkippedSteps(PluginMetric):
    """How many optimiser steps were skipped, because a loss, gradient or memory row was not finite.

    Emitted after each experience that had a plugin which counts them: `SkippedSteps`, the number in
    that experience. Several such plugins skip together, and a step counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._earlier: int | None = None  # before this experience
        self._total = 0

    def result(self) -> dict[str, float]:
        """Return the number over the run so far, by name; empty where no plugin counts."""
        return {} if self._earlier is None else {"SkippedSteps": float(self._total)}

    def before_training_exp(self, strategy: Strategy) -> None:
        """Note how many there were."""
        self._earlier = _skipped(strategy)

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Emit how many came."""
        now = _skipped(strategy)
        if now is None or self._earlier is None:
            return []
        self._total += now - self._earlier
        stream, step = strategy.experience.origin_stream.name, strategy.clock.train_iterations
        name = f"SkippedSteps/train_phase/{stream}_stream"
        return [MetricValue(self, name, now - self._earlier, step)]

    def __str__(self) -> str:
        return "SkippedSteps"


def skipped_steps_metrics() -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one SkippedSteps."""
    return [SkippedSteps()]


def _skipped(strategy: Strategy) -> int | None:
    counts = [p.skipped_steps for p in strategy.plugins if isinstance(p, ShowsSkippedSteps)]
    return max(counts, default=None)
