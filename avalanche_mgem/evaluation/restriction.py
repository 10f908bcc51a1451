"""What the restriction did, as metrics for Avalanche's EvaluationPlugin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_mgem.arguments import flag
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.restriction import Projection


@runtime_checkable
class ShowsProjection(Protocol):
    """A plugin that shows what its last projection did; None where there was nothing to project.

    It may also show `last_seconds`, a mapping from the parts of its work to the time they took, and
    `last_generalization`, one from past tasks to how far the restriction fails to generalise, and
    `last_memory_strength`, a number.
    """

    last_projection: Projection | None


class RestrictionMetric(PluginMetric):
    """How often and how far the gradient was moved, over the iterations that had a memory.

    Emitted after each experience that had a memory, as the means over its iterations:
    `Restriction_ViolatedIterations`, the share of those in which some row was violated in some
    module; `Restriction_ViolatedRows`, the share of all rows in all modules;
    `Restriction_RelativeChange`, ||z - g|| / ||g||; `Restriction_Cosine`, of z and g;
    `Restriction_Dual`, the dual variables; `Restriction_SolverRetries`, how many solves needed a
    larger ridge; `Restriction_Push`, the length of what the memory strength alone adds to g,
    relative to ||g||. Without violation these are 0, 0, 0, 1, 0, 0 and 0. Then
    `Restriction_MemoryStrength`, gamma, before it is divided among groups;
    `Restriction_Seconds_memory` and `_projection`, the time an iteration; and where the plugin
    measures it, `Restriction_GeneralizationGap`, the cosine of z with the memory minus that with
    held-out samples, over the past tasks, and `Restriction_GeneralizationGap/task0` and so on,
    that of each.

    Args:
        minibatch: emit the values of every iteration too, with `_MB` in their name.
        modules: emit violated rows, relative change, cosine and dual variables of each module too,
            as `Restriction_Cosine/NAME` and so on.
        histograms: emit the dual variables of the experience's violated modules as a histogram,
            `Restriction_DualVariables`.
    """

    def __init__(
        self, *, minibatch: bool = False, modules: bool = False, histograms: bool = False
    ) -> None:
        super().__init__()
        self._minibatch = flag("minibatch", minibatch)
        self._modules = flag("modules", modules)
        self._histograms = flag("histograms", histograms)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._run, self._experience = _Means(), _Means()
        self._duals: list[Tensor] = []

    def result(self) -> dict[str, float]:
        """Return the means over the whole run so far, by name; empty where there was no memory."""
        return self._run.values()

    def before_training_exp(self, strategy: Strategy) -> None:
        """Start the means of an experience."""
        self._experience, self._duals = _Means(), []

    def after_training_iteration(self, strategy: Strategy) -> list[MetricValue]:
        """Add what the iteration's projection did."""
        plugin = _source(strategy)
        projection = None if plugin is None else plugin.last_projection
        if projection is None:
            return []
        values = _whole(projection) | _strength(plugin) | _seconds(plugin)
        values |= _generalization(plugin)
        self._run.add(values)
        if self._modules:
            values |= _by_module(projection)
        self._experience.add(values)
        if self._histograms and projection.violated:
            violated = projection.violated_rows.any(dim=1)
            self._duals.append(projection.dual[violated].flatten())
        return self._emit(strategy, values, "_MB") if self._minibatch else []

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Emit the means over the experience."""
        emitted: dict[str, Any] = dict(self._experience.values())
        if self._duals:
            emitted["DualVariables"] = torch.cat(self._duals)
        return self._emit(strategy, emitted)

    def __str__(self) -> str:
        return "Restriction"

    def _emit(
        self, strategy: Strategy, values: Mapping[str, Any], suffix: str = ""
    ) -> list[MetricValue]:
        stream = strategy.experience.origin_stream.name
        step = strategy.clock.train_iterations
        return [
            MetricValue(self, _name(name, suffix, stream), value, step)
            for name, value in values.items()
        ]


class _Means:
    """Running means of named numbers; a name that comes late is averaged from when it came."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def values(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self._sums.items()}


def restriction_metrics(
    *, minibatch: bool = False, modules: bool = False, histograms: bool = False
) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one RestrictionMetric."""
    return [RestrictionMetric(minibatch=minibatch, modules=modules, histograms=histograms)]


def _name(name: str, suffix: str, stream: str) -> str:
    name, _, module = name.partition("/")
    return f"Restriction_{name}{suffix}/train_phase/{stream}_stream" + (f"/{module}" * bool(module))


def _whole(projection: Projection) -> dict[str, float]:
    return {
        "ViolatedIterations": float(projection.violated),
        "ViolatedRows": float(projection.violated_rows.double().mean()),
        "RelativeChange": projection.relative_change,
        "Cosine": projection.cosine,
        "Dual": float(projection.dual.mean()),
        "SolverRetries": float(projection.retries),
        "Push": projection.push,
    }


def _by_module(projection: Projection) -> dict[str, float]:
    columns = {
        "ViolatedRows": projection.violated_rows.double().mean(dim=1),
        "RelativeChange": projection.module_change,
        "Cosine": projection.module_cosine,
        "Dual": projection.dual.mean(dim=1),
    }
    names: Iterable[str] = projection.module_names or map(str, range(len(projection.dots)))
    return {
        f"{column}/{name}": value
        for index, name in enumerate(names)
        for column, value in ((c, float(values[index])) for c, values in columns.items())
    }


def _strength(plugin: Any) -> dict[str, float]:
    strength = getattr(plugin, "last_memory_strength", None)
    return {} if strength is None else {"MemoryStrength": float(strength)}


def _seconds(plugin: Any) -> dict[str, float]:
    seconds = getattr(plugin, "last_seconds", {})
    return {f"Seconds_{part}": float(value) for part, value in seconds.items()}


def _generalization(plugin: Any) -> dict[str, float]:
    gaps: Mapping[int, float] = getattr(plugin, "last_generalization", {})
    if not gaps:
        return {}
    each = {f"GeneralizationGap/task{task}": gap for task, gap in gaps.items()}
    return {"GeneralizationGap": sum(gaps.values()) / len(gaps), **each}


def _source(strategy: Strategy) -> ShowsProjection | None:
    return next((p for p in strategy.plugins if isinstance(p, ShowsProjection)), None)
