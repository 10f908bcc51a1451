"""Which modules trained on which task, as metrics for Avalanche's EvaluationPlugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from avalanche_mgem.arguments import flag
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.restriction.similarity import Decision

_COLOURS = {"frozen": "#c9d3df", "trained": "#0b4f8a"}


@runtime_checkable
class ShowsDecision(Protocol):
    """A plugin that shows which modules train by its last decision; None before the first."""

    last_decision: Decision | None


class DecisionMetric(PluginMetric):
    """How alike successive tasks are, and which modules trained on each.

    Emitted after each experience in which something was decided, as of its last decision:
    `Hybrid_Similarity`, of the gradients of the two tasks, where they were compared, and
    `Hybrid_RidgeHead`, 1 where they were taken behind a fitted head and 0 behind the model's own;
    `Hybrid_Similarity/.../MODULE`, that of each module; `Hybrid_ModulesTrained`, how many modules
    trained; and `Hybrid_Modules`, a picture of all decisions so far: tasks run across, modules up
    to the output. Output heads, which always train, are no modules.

    Args:
        modules: emit the similarity of each module.
        figure: emit the picture; it takes about a tenth of a second an experience.

    Attributes:
        history: the decisions, the first task's included.
    """

    history: list[Decision]

    def __init__(self, *, modules: bool = True, figure: bool = True) -> None:
        super().__init__()
        self._modules, self._figure = flag("modules", modules), flag("figure", figure)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.history = []
        self._emitted = 0  # of the decisions

    def result(self) -> dict[str, float]:
        """Return the means over the decisions so far, by name; empty before the first.

        `Hybrid_Similarity` over those that compared two gradients, `Hybrid_ModulesTrained` over
        all, the first task's included.
        """
        compared = [d.similarity for d in self.history if d.similarity is not None]
        trained = [float(len(decision.trained)) for decision in self.history]
        values = {"Hybrid_Similarity": compared, "Hybrid_ModulesTrained": trained}
        return {name: sum(each) / len(each) for name, each in values.items() if each}

    def after_training_iteration(self, strategy: Strategy) -> None:
        """Note a decision."""
        self._note(strategy)

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Emit what was decided."""
        self._note(strategy)
        if self._emitted == len(self.history):
            return []
        self._emitted = len(self.history)
        decision = self.history[-1]
        values: dict[str, Any] = {"ModulesTrained": float(len(decision.trained))}
        if decision.similarity is not None:
            values["Similarity"] = decision.similarity
            values["RidgeHead"] = float(decision.probe_head == "ridge")
        if self._modules:
            each = decision.module_similarities
            values |= {f"Similarity/{name}": value for name, value in each.items()}
        if self._figure:
            values["Modules"] = modules_by_task(self.history)
        stream, step = strategy.experience.origin_stream.name, strategy.clock.train_iterations
        return [
            MetricValue(self, _full_name(name, stream), value, step)
            for name, value in values.items()
        ]

    def __str__(self) -> str:
        return "Hybrid"

    def _note(self, strategy: Strategy) -> None:
        plugin = next((p for p in strategy.plugins if isinstance(p, ShowsDecision)), None)
        decision = None if plugin is None else plugin.last_decision
        if decision is not None and not (self.history and self.history[-1] is decision):
            self.history.append(decision)


def decision_metrics(*, modules: bool = True, figure: bool = True) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one DecisionMetric."""
    return [DecisionMetric(modules=modules, figure=figure)]


def modules_by_task(decisions: Sequence[Decision]) -> Figure:
    """Draw which modules trained: tasks run across, modules up to the output; none is blank."""
    # A module that is gone, or had not come yet, keeps its row.
    names = list(dict.fromkeys(name for decision in decisions for name in decision.modules))
    table = np.full((len(names), len(decisions)), np.nan)
    for column, decision in enumerate(decisions):
        for name in decision.modules:
            table[names.index(name), column] = name in decision.trained
    size = (2.5 + max(3.0, 0.3 * len(decisions)), 1.2 + max(1.5, 0.25 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.pcolormesh(
        np.arange(len(decisions) + 1) - 0.5,
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(table),
        cmap=ListedColormap(list(_COLOURS.values())),
        vmin=0.0,
        vmax=1.0,
        edgecolors="white",
        linewidth=1.0,
    )
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="Task", ylabel="Module, the output side above")
    figure.legend(
        handles=[Patch(color=colour, label=label) for label, colour in _COLOURS.items()],
        loc="outside upper right",
        ncols=2,
        frameon=False,
    )
    return figure


def _full_name(name: str, stream: str) -> str:
    name, _, module = name.partition("/")
    return f"Hybrid_{name}/train_phase/{stream}_stream" + (f"/{module}" * bool(module))
