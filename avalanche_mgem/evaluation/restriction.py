"""What the restriction did, as metrics for Avalanche's EvaluationPlugin."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_mgem.restriction import Projection

NAMES = ("ViolatedIterations", "RelativeChange", "Cosine")


@runtime_checkable
class ShowsProjection(Protocol):
    """A plugin that shows what its last projection did; None where there was nothing to project."""

    last_projection: Projection | None


class RestrictionMetric(PluginMetric):  # type: ignore[misc]  # Avalanche ships no types
    """How often and how far the gradient was moved, over the iterations that had a memory.

    `Restriction_ViolatedIterations`: share of the iterations in which some row was violated in some
    module. `Restriction_RelativeChange`: mean of ||z - g|| / ||g||. `Restriction_Cosine`: mean of
    the cosine of z and g. All are 0, 0 and 1 in an iteration without violation, and are left out
    where there was no memory, as in the first experience.

    Args:
        minibatch: emit the values of every iteration too, with `_MB` in their name.
    """

    def __init__(self, *, minibatch: bool = False) -> None:
        super().__init__()
        self._minibatch = minibatch
        self._run = _Means()
        self._experience = _Means()

    def reset(self) -> None:
        """Forget everything."""
        self._run, self._experience = _Means(), _Means()

    def result(self) -> dict[str, float]:
        """Return the means over the whole run so far, by name; empty where there was no memory."""
        return self._run.values()

    def before_training_exp(self, strategy: Any) -> None:
        """Start the means of an experience."""
        self._experience = _Means()

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        """Add what the iteration's projection did."""
        projection = _last_projection(strategy)
        if projection is None:
            return []
        one = _Means()
        for means in (self._run, self._experience, one):
            means.add(float(projection.violated), projection.relative_change, projection.cosine)
        return self._emit(strategy, one, "_MB") if self._minibatch else []

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the means over the experience."""
        return self._emit(strategy, self._experience)

    def __str__(self) -> str:
        return "Restriction"

    def _emit(self, strategy: Any, means: _Means, suffix: str = "") -> list[MetricValue]:
        stream = strategy.experience.origin_stream.name
        step = strategy.clock.train_iterations
        return [
            MetricValue(self, f"{self}_{name}{suffix}/train_phase/{stream}_stream", value, step)
            for name, value in means.values().items()
        ]


class _Means:
    """Running means of the three numbers."""

    def __init__(self) -> None:
        self._sums = [0.0] * len(NAMES)
        self._count = 0

    def add(self, *values: float) -> None:
        self._sums = [total + value for total, value in zip(self._sums, values, strict=True)]
        self._count += 1

    def values(self) -> dict[str, float]:
        if not self._count:
            return {}
        means = [total / self._count for total in self._sums]
        return dict(zip(NAMES, means, strict=True))


def restriction_metrics(*, minibatch: bool = False) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one RestrictionMetric."""
    return [RestrictionMetric(minibatch=minibatch)]


def _last_projection(strategy: Any) -> Projection | None:
    for plugin in strategy.plugins:
        if isinstance(plugin, ShowsProjection):
            return plugin.last_projection
    return None
