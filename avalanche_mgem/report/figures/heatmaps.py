"""The accuracy matrix of each method as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from avalanche_mgem.report.figures.canvas import message_sheet, panels, plain
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.summary import (
    by_method,
    divergence_note,
    stream_length,
    without_diverged,
)

_MAP = "viridis"  # as clear without red or green, and in grey
_LONGEST_WITH_NUMBERS = 10
_PANEL = 2.6  # inches
_TITLE = 30  # letters that fit above a panel


def heatmap_figure(results: Sequence[RunResult]) -> Figure:
    """Draw R, the mean over the seeds, a panel a method, all on one scale of colours.

    Rows are what was trained last, columns what is tested, both from 1. Up to ten experiences, the
    accuracies are written into the cells. What some seed did not measure is grey and hatched. Seeds
    that diverged are left out and counted beside the name; where all did, R is theirs.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
    """
    groups = by_method(results)
    matrices = {method: mean_matrix(method, runs) for method, runs in groups.items()}
    title = f"Accuracy on every task after every task: {results[0].stream}"
    scale = _scale(matrices)
    if scale is None:
        return message_sheet(title, "No accuracy was measured.")
    figure, axes = panels(title, len(matrices), columns=4, size=_PANEL)
    for panel, (method, matrix) in zip(axes, matrices.items(), strict=True):
        image = _draw_matrix(panel, matrix, scale)
        panel.set_title(plain(method + divergence_note(groups[method]), _TITLE), fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 0.5 + 0.4 / len(axes)), pad=0.02)
    bar.set_label(_bar_label(groups), fontsize=9)
    holes = any(np.isnan(matrix).any() for matrix in matrices.values())
    figure.supxlabel("Tested on task" + ("\nHatched: not measured" if holes else ""), fontsize=10)
    figure.supylabel("Trained up to task", fontsize=10)
    return figure


def mean_matrix(method: str, runs: Sequence[RunResult]) -> NDArray[np.float64]:
    """Return R of a method, the mean over the seeds that did not diverge.

    Raises:
        ValueError: the runs differ in length.
    """
    stream_length(method, runs)
    # Sorted, so that the sum is the same in any order of the runs.
    ordered: NDArray[np.float64] = np.sort(
        np.stack([run.accuracy for run in without_diverged(runs)]), axis=0
    )
    return np.asarray(ordered.mean(axis=0))


def _scale(matrices: Mapping[str, NDArray[np.float64]]) -> Normalize | None:
    values = np.concatenate([matrix.ravel() for matrix in matrices.values()])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def _bar_label(groups: Mapping[str, Sequence[RunResult]]) -> str:
    one = all(len(runs) == 1 for runs in groups.values())
    return "Accuracy" if one else "Accuracy, mean over the seeds"


def _draw_matrix(axes: Axes, matrix: NDArray[np.float64], scale: Normalize) -> AxesImage:
    size = len(matrix)
    frame = (0.5, size + 0.5, size + 0.5, 0.5)
    hole = Rectangle((0.5, 0.5), size, size, facecolor="0.92", edgecolor="0.75", hatch="////")
    hole.set(linewidth=0, zorder=0)
    axes.add_patch(hole)
    shown = np.ma.masked_invalid(matrix)  # lets the hatching through
    image = axes.imshow(shown, cmap=_MAP, norm=scale, extent=frame, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=10))
    axes.tick_params(labelsize=8)
    if size <= _LONGEST_WITH_NUMBERS:
        _write_numbers(axes, matrix, scale)
    return image


def _write_numbers(axes: Axes, matrix: NDArray[np.float64], scale: Normalize) -> None:
    points = min(9.0, 66 / len(matrix))
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            red, green, blue, _ = colormaps[_MAP](scale(value))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            colour = "black" if light else "white"
            place: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": points,
                "color": colour,
            }
            axes.text(column + 1, row + 1, short_number(float(value)), **place)


def short_number(value: float) -> str:
    """Return an accuracy in as few letters as tell it to a hundredth: ".79", "1"."""
    text = f"{value:.2f}"
    return "1" if text == "1.00" else text.replace("0.", ".", 1)
