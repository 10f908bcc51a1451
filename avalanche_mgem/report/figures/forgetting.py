"""How much of each task was forgotten, a panel a method."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from avalanche_mgem.evaluation.matrix import forgetting_of_tasks as losses_of_tasks
from avalanche_mgem.report.figures.canvas import explain, message_sheet, panels, plain, style, tidy
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval
from avalanche_mgem.results.summary import (
    by_method,
    divergence_note,
    stream_length,
    without_diverged,
)

_TITLE = 28  # letters that fit above a panel
_NOTHING = (
    "No method has a value.\nForgetting needs two experiences or more, and one of them\n"
    "measured after every experience since it was learnt."
)


def forgetting_figure(results: Sequence[RunResult]) -> Figure:
    """Draw (max over t in i..T-2 of R[t, i]) - R[T-1, i] against i < T-1, a panel a method.

    What was lost of the best accuracy on each task, as `evaluation.forgetting_of_tasks`. The line
    is the mean over the seeds, the bars its 95% interval (Student's t); one seed has none. The
    other methods are behind it in grey. A method of which no task has a value has no panel and is
    named below. The last task cannot be forgotten yet. Seeds that diverged are left out and counted
    below.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
    """
    groups = by_method(results)
    curves = {method: forgetting_of_tasks(method, runs) for method, runs in groups.items()}
    measured = {m: curve for m, curve in curves.items() if np.isfinite(curve).any()}
    title = f"Forgetting of each task: {results[0].stream}"
    if not measured:
        return message_sheet(title, _NOTHING)
    figure, axes = panels(title, len(measured), columns=4, size=2.3)
    indices = {method: index for index, method in enumerate(groups)}
    for panel, method in zip(axes, measured, strict=True):
        others = [curve for other, curve in measured.items() if other != method]
        _draw_panel(panel, method, measured[method], others, indices[method])
    note = explain(groups, "bars: its 95% interval. Grey: the other methods.").replace("\n", " ")
    note += "\nBeside the name: the mean over the tasks."
    left_out = [method for method in groups if method not in measured]
    if left_out:
        note += "\n" + plain(f"Not measured: {', '.join(left_out)}", 90)
    diverged = [method + text for method in groups if (text := divergence_note(groups[method]))]
    if diverged:
        note += "\n" + plain(f"Seeds left out: {', '.join(diverged)}", 90)
    figure.supxlabel(f"Task\n{note}", fontsize=9)
    figure.supylabel("Loss of the best accuracy so far", fontsize=10)
    return figure


def forgetting_of_tasks(method: str, runs: Sequence[RunResult]) -> NDArray[np.float64]:
    """Return [T-1, 2]: mean and half-width over the seeds of what was lost of each task.

    Raises:
        ValueError: if the runs differ in length.
    """
    lost = [losses_of_tasks(run.accuracy) for run in without_diverged(runs)]
    tasks = range(stream_length(method, runs) - 1)
    intervals = [mean_interval([float(one[i]) for one in lost]) for i in tasks]
    return np.array(intervals, dtype=np.float64).reshape(-1, 2)


def _draw_panel(
    axes: Axes,
    method: str,
    curve: NDArray[np.float64],
    others: Sequence[NDArray[np.float64]],
    index: int,
) -> None:
    tidy(axes)
    axes.axhline(0, color="0.3", linewidth=0.8)
    for other in others:
        tasks = np.arange(1, len(other) + 1)
        marker = "_" if len(other) == 1 else None  # one point has no line
        axes.plot(tasks, other[:, 0], color="0.8", linewidth=0.8, marker=marker, zorder=1)
    tasks, (mean, half_width) = np.arange(1, len(curve) + 1), curve.T
    look = style(index)
    axes.errorbar(
        tasks,
        mean,
        np.nan_to_num(half_width),
        linewidth=1.6,
        markersize=4.5,
        elinewidth=1.0,
        capsize=2 if np.isfinite(half_width).any() else 0,
        zorder=2,
        **look,
    )
    average = float(mean.mean())
    text = "" if math.isnan(average) else f": {round(average, 3) + 0.0:.3f}"
    axes.set_title(plain(method + text, _TITLE), fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=8)
    if len(curve) == 1:
        axes.set_xlim(0.5, 1.5)
