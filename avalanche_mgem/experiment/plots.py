"""Pictures of a comparison: accuracy along the stream, and learning against remembering.

Each picture is of one stream; `report.by_stream` splits runs of several. Figures are built without
pyplot, so no display, no backend and no global state is touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from avalanche_mgem.experiment.report import by_method
from avalanche_mgem.experiment.result import RunResult
from avalanche_mgem.experiment.statistics import mean_interval, pareto_front
from avalanche_mgem.files import write_atomically

DPI = 150

# Okabe and Ito's colours without the yellow, too pale for a line on white, then four of Tol's. No
# two of 44 methods share colour and line style, no two of 12 a marker, for those who print in grey.
_COLOURS = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7"),
    *("#882255", "#332288", "#999933", "#7F7F7F"),
)
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")

# Where a name is tried: the side of its marker, right and up, then ever further from it, in points.
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (0, 12, 24, 40, 60, 85)

Interval = tuple[float, float]


def plot_accuracy(results: Sequence[RunResult], path: str | PathLike[str]) -> None:
    """Write `accuracy_figure` as a PNG at 150 dpi; the file appears whole or not at all.

    Raises:
        ValueError: as `accuracy_figure`.
        OSError: if path cannot be written; a file that was there is then unchanged.
    """
    write_atomically(path, _png(accuracy_figure(results)))


def plot_tradeoff(results: Sequence[RunResult], path: str | PathLike[str]) -> None:
    """Write `tradeoff_figure` as a PNG at 150 dpi; the file appears whole or not at all.

    Raises:
        ValueError: as `tradeoff_figure`.
        OSError: if path cannot be written; a file that was there is then unchanged.
    """
    write_atomically(path, _png(tradeoff_figure(results)))


def accuracy_figure(results: Sequence[RunResult]) -> Figure:
    """Draw mean_{i<=t} R[t, i] against t, a line a method.

    The line is the mean over the seeds, the band its 95% interval (Student's t); one seed has no
    band. A point that some seed did not measure is left out.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `report.by_method`, or if the runs of a method differ in length.
    """
    groups = by_method(results)
    figure, axes = _canvas(f"Accuracy on the experiences seen so far: {results[0].stream}")
    for index, (method, runs) in enumerate(groups.items()):
        _draw_curve(axes, method, _curve(method, runs), _style(index))
    axes.set_xlabel("Experiences seen")
    axes.set_ylabel("Average accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axes, _explain(groups, "band: its 95% interval"))
    return figure


def tradeoff_figure(results: Sequence[RunResult]) -> Figure:
    """Draw learning accuracy against backward transfer, a point a method; up and right is better.

    A point is the mean over the seeds with its 95% intervals (Student's t); one seed has none. The
    staircase is the Pareto front of the means: all that lies left of and below it is dominated.
    Where no method has both scores, as on a stream of one experience, the figure says so instead.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `report.by_method`.
    """
    groups = by_method(results)
    figure, axes = _canvas(f"Learning against remembering: {results[0].stream}")
    axes.set_xlabel("Learning accuracy (LA)")
    axes.set_ylabel("Backward transfer (BWT)")
    scores = {method: _scores(runs) for method, runs in groups.items()}
    points = {method: (la[0], bwt[0]) for method, (la, bwt) in scores.items()}
    if not pareto_front(list(points.values())):
        return _nothing_to_show(figure, axes)
    for index, (method, (la, bwt)) in enumerate(scores.items()):
        _draw_point(axes, method, la, bwt, _style(index))
    _draw_front(axes, list(points.values()))
    note = _explain(groups, "bars: its 95% intervals")
    _legend(figure, axes, f"Up and right is better\n{note}")
    _label_points(figure, axes, points)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.0, 5.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(_plain(title))
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(text: str) -> str:
    # A pair of dollars would be read as a formula, and a bad formula is an error.
    return text.replace("$", r"\$")


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _LINES[index % len(_LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def _explain(groups: Mapping[str, Sequence[RunResult]], interval: str) -> str:
    if all(len(runs) == 1 for runs in groups.values()):
        return "One seed: no intervals"
    return f"Mean over the seeds;\n{interval}"


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        title=title,
        title_fontsize=8,
        alignment="left",
        frameon=False,
        fontsize=9,
        handlelength=3.5,
    )


def _curve(method: str, runs: Sequence[RunResult]) -> NDArray[np.float64]:
    """Return [T, 2]: mean and half-width over the seeds of the accuracy on what was seen."""
    lengths = sorted({len(run.accuracy) for run in runs})
    if len(lengths) > 1:
        raise ValueError(
            f"results of method={method!r} must have as many experiences each, got {lengths}"
        )
    return np.array(
        [
            mean_interval([float(run.accuracy[t, : t + 1].mean()) for run in runs])
            for t in range(lengths[0])
        ]
    )


def _draw_curve(
    axes: Axes, method: str, curve: NDArray[np.float64], style: Mapping[str, Any]
) -> None:
    seen = np.arange(1, len(curve) + 1)
    mean, half_width = curve.T
    every = max(1, len(curve) // 15)
    axes.plot(
        seen, mean, label=_plain(method), linewidth=1.4, markersize=5, markevery=every, **style
    )
    axes.fill_between(
        seen,
        mean - half_width,
        mean + half_width,
        color=style["color"],
        alpha=0.1,
        linewidth=0,
    )


def _scores(runs: Sequence[RunResult]) -> tuple[Interval, Interval]:
    """Return (mean, half-width) of learning accuracy and of backward transfer."""
    scores = [run.scores for run in runs]
    la, bwt = (mean_interval([one[name] for one in scores]) for name in ("la", "bwt"))
    return la, bwt


def _nothing_to_show(figure: Figure, axes: Axes) -> Figure:
    message = (
        "No method has both scores.\nBackward transfer needs two experiences or more,\n"
        "and every one of them measured when it was learnt and at the end."
    )
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    return figure


def _draw_point(
    axes: Axes, method: str, la: Interval, bwt: Interval, style: Mapping[str, Any]
) -> None:
    measured = not math.isnan(la[0] + bwt[0])
    bars = {"fmt": "none", "ecolor": style["color"], "elinewidth": 0.9, "alpha": 0.5}
    axes.errorbar(la[0], bwt[0], np.nan_to_num(bwt[1]), np.nan_to_num(la[1]), zorder=2, **bars)
    label = _plain(method) if measured else f"{_plain(method)} (not measured)"
    axes.plot(la[0], bwt[0], label=label, markersize=7, zorder=3, **{**style, "linestyle": "none"})


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw the edge of what is dominated, out to the axes, so that one point has an edge too."""
    front = [points[i] for i in pareto_front(points)]
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    x, y = zip((left, front[0][1]), *front, (front[-1][0], bottom), strict=True)
    axes.plot(
        x,
        y,
        drawstyle="steps-pre",
        color="0.6",
        linewidth=1.2,
        linestyle=(0, (6, 2)),
        zorder=1,
        label="Pareto front of the means",
    )
    axes.set_xlim(left=left)
    axes.set_ylim(bottom=bottom)


def _label_points(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each method's name beside its point where there is room; the legend has them all."""
    figure.draw_without_rendering()  # only now is the layout, and so what a pixel is, known
    shown = {method: point for method, point in points.items() if not math.isnan(sum(point))}
    pixels = axes.transData.transform(list(shown.values()))
    names: list[Bbox] = []
    for index, (method, point) in enumerate(shown.items()):
        box = _label(axes, method, point, np.delete(pixels, index, axis=0), names)
        names += [] if box is None else [box]


def _label(
    axes: Axes,
    method: str,
    point: tuple[float, float],
    others: NDArray[np.float64],
    names: Sequence[Bbox],
) -> Bbox | None:
    """Write the name at the first place that is free; return its pixels, None if there is none."""
    width, height = _size(axes, method)
    start = axes.transData.transform(point)
    for distance in _DISTANCES:
        # A name without a line to its marker must not be near another one.
        margin = 12 if distance else 26
        taken = [*names, *(_box(other, margin, margin) for other in others)]
        for right, up in _SIDES:
            dx, dy = right * (width / 2 + 4 + distance), up * (height / 2 + 4 + distance)
            centre = start + np.array([dx, dy]) * DPI / 72
            box = _box(centre, width, height)
            free = _inside(box, axes.bbox) and box.count_overlaps(taken) == 0
            if free and not _crosses(start, centre, others):
                _write_name(axes, method, point, (dx, dy), leader=distance > 0)
                return box
    return None


def _size(axes: Axes, name: str) -> tuple[float, float]:
    """Return the width and height of a written name in points."""
    text = axes.text(0, 0, _plain(name), fontsize=8)
    box = text.get_window_extent()
    text.remove()
    return box.width * 72 / DPI, box.height * 72 / DPI


def _box(centre: NDArray[np.float64], width: float, height: float) -> Bbox:
    """Return the pixels of a box around a pixel, its size in points."""
    half = np.array([width, height]) * DPI / 72 / 2
    return Bbox([centre - half, centre + half])


def _inside(box: Bbox, room: Bbox) -> bool:
    return bool(np.all(box.min >= room.min) and np.all(box.max <= room.max))


def _crosses(
    start: NDArray[np.float64], end: NDArray[np.float64], others: NDArray[np.float64]
) -> bool:
    """Tell whether the line from a marker to its name runs over another marker."""
    line = Path(np.stack([start, end]))
    return any(line.intersects_bbox(_box(other, 4, 4)) for other in others)


def _write_name(
    axes: Axes, method: str, point: tuple[float, float], offset: tuple[float, float], leader: bool
) -> None:
    line = {"arrowstyle": "-", "color": "0.3", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    text = axes.annotate(
        _plain(method),
        point,
        offset,
        textcoords="offset points",
        arrowprops=line if leader else None,
        ha="center",
        va="center",
        fontsize=8,
    )
    text.set_path_effects([Stroke(linewidth=2.5, foreground="white"), Normal()])
    text.set_in_layout(False)  # else the layout would move for the text placed in it
