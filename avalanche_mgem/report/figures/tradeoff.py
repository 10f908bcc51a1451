"""Learning against remembering: a point a method, and the front that none lies beyond."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from avalanche_mgem.report.figures.canvas import (
    DPI,
    LEGEND,
    canvas,
    explain,
    legend,
    message_sheet,
    plain,
    style,
)
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval, pareto_front
from avalanche_mgem.results.summary import by_method, divergence_note, without_diverged

# Where a name is tried: the side of its marker, right and up, then ever further from it, in points.
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (0, 12, 24, 40, 60, 85)

_NO_SCORES = (
    "No method has both scores.\nBackward transfer needs two experiences or more,\n"
    "and every one of them measured when it was learnt and at the end."
)

Interval = tuple[float, float]


def tradeoff_figure(results: Sequence[RunResult]) -> Figure:
    """Draw learning accuracy against backward transfer, a point a method; up and right is better.

    A point is the mean over the seeds with its 95% intervals (Student's t); one seed has none. The
    staircase is the Pareto front of the means: all that lies left of and below it is dominated.
    Where no method has both scores, as on a stream of one experience, the figure says so instead.
    Seeds that diverged are left out and counted beside the name.

    Args:
        results: runs of one stream, in any order.

    Raises:
        ValueError: as `summary.by_method`.
    """
    groups = by_method(results)
    title = f"Learning against remembering: {results[0].stream}"
    scores = {method: _scores(runs) for method, runs in groups.items()}
    points = {method: (la[0], bwt[0]) for method, (la, bwt) in scores.items()}
    if not pareto_front(list(points.values())):
        return message_sheet(title, _NO_SCORES)
    figure, axes = canvas(title)
    axes.set_xlabel("Learning accuracy (LA)")
    axes.set_ylabel("Backward transfer (BWT)")
    for index, (method, (la, bwt)) in enumerate(scores.items()):
        _draw_point(axes, method, la, bwt, style(index), divergence_note(groups[method]))
    draw_front(axes, list(points.values()))
    note = explain(groups, "bars: its 95% intervals")
    legend(figure, axes, f"Up and right is better\n{note}")
    _label_points(figure, axes, points)
    return figure


def _scores(runs: Sequence[RunResult]) -> tuple[Interval, Interval]:
    """Return (mean, half-width) of learning accuracy and of backward transfer."""
    scores = [run.scores for run in without_diverged(runs)]
    la, bwt = (mean_interval([one[name] for one in scores]) for name in ("la", "bwt"))
    return la, bwt


def _draw_point(
    axes: Axes, method: str, la: Interval, bwt: Interval, look: Mapping[str, Any], note: str
) -> None:
    measured = not math.isnan(la[0] + bwt[0])
    bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.9, "alpha": 0.5}
    axes.errorbar(la[0], bwt[0], np.nan_to_num(bwt[1]), np.nan_to_num(la[1]), zorder=2, **bars)
    label = plain(method + (note or ("" if measured else " (not measured)")), LEGEND)
    axes.plot(la[0], bwt[0], label=label, markersize=7, zorder=3, **{**look, "linestyle": "none"})


def draw_front(axes: Axes, points: Sequence[tuple[float, float]], **look: Any) -> None:
    """Draw the edge of what is dominated, out to the axes, so that one point has an edge too.

    look: of the line, in place of a grey dashed one.
    """
    front = [points[i] for i in pareto_front(points)]
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    x, y = zip((left, front[0][1]), *front, (front[-1][0], bottom), strict=True)
    usual = {"color": "0.6", "linestyle": (0, (6, 2)), "label": "Pareto front of the means"}
    axes.plot(x, y, **{**usual, "drawstyle": "steps-pre", "linewidth": 1.2, "zorder": 1, **look})
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
    text = axes.text(0, 0, plain(name), fontsize=8)
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
        plain(method),
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
