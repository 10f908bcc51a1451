"""The accuracy on the first tasks while later ones are trained: the stability gap."""

from __future__ import annotations

from collections.abc import Sequence

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
from avalanche_mgem.results.summary import by_method, stream_length

_MOST = 4  # tasks that are shown
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
    Dotted lines are where a task ends. Methods that were evaluated after each experience alone are
    left out; where all were, the figure says so.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
    """
    groups = by_method(results)
    title = f"Accuracy on the first tasks while later ones are trained: {results[0].stream}"
    curves = {
        method: (index, runs)
        for index, (method, runs) in enumerate(groups.items())
        if all(run.curve is not None for run in runs)
    }
    tasks = min(_MOST, max((stream_length(m, runs) - 1 for m, runs in groups.items()), default=0))
    if not curves or tasks == 0:
        return message_sheet(title, _NOTHING)
    figure, axes = panels(title, tasks, columns=2, size=3.4)
    for task, panel in enumerate(axes):
        tidy(panel)
        panel.set_title(f"Task {task + 1}", fontsize=9)
        for method, (index, runs) in curves.items():
            _draw_curve(panel, method, _curve_of_task(runs, task), index)
        for end in _ends(next(iter(curves.values()))[1][0]):
            panel.axvline(end, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes[0].set_ylim(-0.03, 1.03)  # of all: intervals of few seeds reach far beyond
    note = explain({m: runs for m, (_, runs) in curves.items()}, "band: its 95% interval")
    figure.supxlabel("Iterations trained\n" + note.replace("\n", " "), fontsize=9)
    figure.supylabel("Accuracy", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _curve_of_task(runs: Sequence[RunResult], task: int) -> Points:
    """Return [P, 3]: iterations, mean and half-width over the seeds, where all were evaluated."""
    measured: list[dict[int, float]] = []
    for run in runs:
        assert run.curve is not None
        points = zip(run.curve.iterations, run.curve.trained, run.curve.accuracy, strict=True)
        learnt = {
            iteration: float(accuracy[task])
            for iteration, trained, accuracy in points
            if trained > task and iteration >= _ends(run)[task]
        }
        measured.append(learnt)
    shared = sorted(set(measured[0]).intersection(*measured[1:]))
    rows = [(at, *mean_interval([one[at] for one in measured])) for at in shared]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _ends(run: RunResult) -> list[int]:
    """Return after how many iterations each task ended: the last evaluation of so many tasks."""
    assert run.curve is not None
    ends = dict(zip(run.curve.trained, run.curve.iterations, strict=True))
    return [ends.get(task + 1, 0) for task in range(len(run.accuracy))]


def _draw_curve(axes: Axes, method: str, points: Points, index: int) -> None:
    look = {name: value for name, value in style(index).items() if name != "marker"}
    iterations, mean, half_width = points.T
    axes.plot(iterations, mean, label=plain(method, LEGEND), linewidth=1.2, **look)
    low, high = mean - half_width, mean + half_width
    axes.fill_between(iterations, low, high, color=look["color"], alpha=0.1, linewidth=0)
