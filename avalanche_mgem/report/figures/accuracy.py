"""Pictures of a comparison: what there is to draw, and how it is written.

Each picture is of one stream; `summary.by_stream` splits runs of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from avalanche_mgem.arguments import as_path
from avalanche_mgem.files import write_atomically
from avalanche_mgem.report.figures.canvas import LEGEND, canvas, explain, legend, plain, png, style
from avalanche_mgem.report.figures.forgetting import forgetting_figure
from avalanche_mgem.report.figures.heatmaps import heatmap_figure
from avalanche_mgem.report.figures.tradeoff import tradeoff_figure
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval
from avalanche_mgem.results.summary import (
    by_method,
    divergence_note,
    stream_length,
    without_diverged,
)

__all__ = [
    "FIGURES",
    "accuracy_figure",
    "forgetting_figure",
    "heatmap_figure",
    "plot_accuracy",
    "plot_tradeoff",
    "tradeoff_figure",
]


def plot_accuracy(results: Sequence[RunResult], path: str | PathLike[str]) -> None:
    """Write `accuracy_figure` as a PNG at 150 dpi; the file appears whole or not at all.

    Raises:
        ValueError: as `accuracy_figure`.
        OSError: if path cannot be written; a file that was there is then unchanged.
    """
    write_atomically(as_path("path", path), png(accuracy_figure(results)))


def plot_tradeoff(results: Sequence[RunResult], path: str | PathLike[str]) -> None:
    """Write `tradeoff_figure` as a PNG at 150 dpi; the file appears whole or not at all.

    Raises:
        ValueError: as `tradeoff_figure`.
        OSError: if path cannot be written; a file that was there is then unchanged.
    """
    write_atomically(as_path("path", path), png(tradeoff_figure(results)))


def accuracy_figure(results: Sequence[RunResult]) -> Figure:
    """Draw mean_{i<=t} R[t, i] against t, a line a method.

    The line is the mean over the seeds, the band its 95% interval (Student's t); one seed has no
    band. A point that some seed did not measure is left out. Seeds that diverged are left out and
    counted beside the name; where all did, the line is what they measured before.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
    """
    groups = by_method(results)
    figure, axes = canvas(f"Accuracy on the experiences seen so far: {results[0].stream}")
    for index, (method, runs) in enumerate(groups.items()):
        curve, note = _curve(method, runs), divergence_note(runs)
        _draw_curve(axes, method, curve, style(index), note)
    axes.set_xlabel("Experiences seen")
    axes.set_ylabel("Average accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend(figure, axes, explain(groups, "band: its 95% interval"))
    return figure


def _curve(method: str, runs: Sequence[RunResult]) -> NDArray[np.float64]:
    """Return [T, 2]: mean and half-width over the seeds of the accuracy on what was seen."""
    return np.array(
        [
            mean_interval(
                [float(run.accuracy[t, : t + 1].mean()) for run in without_diverged(runs)]
            )
            for t in range(stream_length(method, runs))
        ]
    )


def _draw_curve(
    axes: Axes, method: str, curve: NDArray[np.float64], look: Mapping[str, Any], note: str
) -> None:
    seen = np.arange(1, len(curve) + 1)
    mean, half_width = curve.T
    measured = np.isfinite(mean)
    # A lone point has no line, so its marker must show.
    every = max(1, len(curve) // 15) if measured.all() else 1
    label = plain(method + (note or _not_measured(measured)), LEGEND)
    axes.plot(seen, mean, label=label, linewidth=1.4, markersize=5, markevery=every, **look)
    if not measured[:-1].any():  # nor has it a band
        bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(seen[-1:], mean[-1:], np.nan_to_num(half_width[-1:]), **bars)
    axes.fill_between(
        seen,
        mean - half_width,
        mean + half_width,
        color=look["color"],
        alpha=0.1,
        linewidth=0,
    )


def _not_measured(measured: NDArray[np.bool_]) -> str:
    if not measured.any():
        return " (not measured)"
    return " (only at the end)" if len(measured) > 1 and not measured[:-1].any() else ""


FIGURES = {
    "accuracy": accuracy_figure,
    "tradeoff": tradeoff_figure,
    "forgetting": forgetting_figure,
    "heatmaps": heatmap_figure,
}
"""Every picture of a comparison, by the name of its file."""
