"""The accuracy on the first tasks while later ones are trained: the stability gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from avalanche_mgem.report.figures.canvas import (
    LEGEND,
    explain,
    message_sheet,
    panels,
    plain,
    style,
    tidy,
)
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval
from avalanche_mgem.results.summary import (
    by_method,
    divergence_note,
    stream_length,
    without_diverged,
)

_MOST, _COLUMNS = 4, 2  # panels
_NOTHING = (
    "No run was evaluated within its experiences.\nCompare with --eval-every, or "
    "Training(eval_every=...)."
)

Points = NDArray[np.float64]


def has_curve(results: Sequence[RunResult]) -> bool:
    """Whether a run was evaluated within its experiences."""
    return any(run.curve is not None for run in results)


def stability_figure(results: Sequence[RunResult]) -> Figure:
    """Draw the accuracy on each of the first tasks over the iterations, a line a method.

    A panel is of one task, at most four, from the end of its training on; the last task has none.
    The line is the mean over the seeds, the band its 95% interval (Student's t); one seed has none.
    Dotted lines are where a task ends. Methods that were evaluated after each experience alone, or
    trained on all tasks at once, are left out; where all were, the figure says so. Seeds that
    diverged are left out and counted beside the name; where all did, the line is what they measured
    before.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
    """
    groups = by_method(results)
    title = f"Accuracy on the first tasks while later ones are trained: {results[0].stream}"
    tasks = min(_MOST, max(stream_length(method, runs) for method, runs in groups.items()) - 1)
    curves = {
        method: [_curve_of_task(without_diverged(runs), task) for task in range(tasks)]
        for method, runs in groups.items()
        if all(run.curve is not None for run in runs)
    }
    curves = {method: panels for method, panels in curves.items() if any(map(len, panels))}
    if not curves:
        return message_sheet(title, _NOTHING)
    figure, axes = panels(title, tasks, columns=_COLUMNS, size=3.4)
    indices = {method: index for index, method in enumerate(groups)}
    shown = {method: groups[method] for method in curves}
    ends = {end for runs in shown.values() for run in runs for end in _ends(run).values()}
    for task, panel in enumerate(axes):
        tidy(panel)
        panel.set_title(f"Task {task + 1}", fontsize=9)
        for method, of_tasks in curves.items():
            label = method + divergence_note(groups[method])
            _draw_curve(panel, label, of_tasks[task], style(indices[method]))
        for end in sorted(ends):
            panel.axvline(end, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes[0].set_ylim(-0.03, 1.03)  # of all: intervals of few seeds reach far beyond
    for panel in axes[-_COLUMNS:]:  # a label of the figure would lie under the legend
        panel.set_xlabel("Iterations trained")
    figure.supylabel("Accuracy", fontsize=10)
    _add_legend(figure, axes[0], explain(shown, "band: its 95% interval"))
    return figure


def _add_legend(figure: Figure, axes: Axes, note: str) -> None:
    """Put the legend below the panels, the figure higher by that: beside them they were narrow."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        title=note.replace("\n", " "),
        title_fontsize=8,
        ncols=_COLUMNS,
        frameon=False,
        fontsize=9,
        handlelength=3.5,
    )
    lines = sum(label.count("\n") + 1 for label in labels) / _COLUMNS
    figure.set_figheight(figure.get_figheight() + 0.2 * lines)


def _curve_of_task(runs: Sequence[RunResult], task: int) -> Points:
    """Return [P, 3]: iterations, mean and half-width over the seeds, where all were evaluated."""
    measured: list[dict[int, float]] = []
    for run in runs:
        assert run.curve is not None
        points = zip(run.curve.iterations, run.curve.trained, run.curve.accuracy, strict=True)
        end = _ends(run).get(task + 1, math.inf)
        learnt = {
            iteration: float(accuracy[task])
            for iteration, trained, accuracy in points
            if trained > task and iteration >= end
        }
        measured.append(learnt)
    shared = sorted(set(measured[0]).intersection(*measured[1:]))
    rows = [(at, *mean_interval([one[at] for one in measured])) for at in shared]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _ends(run: RunResult) -> dict[int, int]:
    """Return after how many iterations a number of tasks was trained: at its last evaluation."""
    assert run.curve is not None
    pairs = zip(run.curve.trained, run.curve.iterations, strict=True)
    return {trained: iteration for trained, iteration in pairs if trained > 0}


def _draw_curve(axes: Axes, label: str, points: Points, look: Mapping[str, Any]) -> None:
    look = {name: value for name, value in look.items() if name != "marker"}
    iterations, mean, half_width = points.T
    axes.plot(iterations, mean, label=plain(label, LEGEND), linewidth=1.2, **look)
    low, high = mean - half_width, mean + half_width
    axes.fill_between(iterations, low, high, color=look["color"], alpha=0.1, linewidth=0)
