"""What a sweep has found: the trials of each method, and the fronts of what was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_mgem.report.figures.canvas import legend, message_sheet, plain, sheet, style, tidy
from avalanche_mgem.report.figures.tradeoff import draw_front
from avalanche_mgem.results.statistics import pareto_front

Point = tuple[float, float]


@dataclass(frozen=True)
class FrontPoints:
    """One method's points, both coordinates to be large.

    Args:
        trials: all that were finished, on the validation data.
        chosen: the front of these.
        tested: the chosen ones on the test data; NaN where a run diverged.
    """

    trials: Sequence[Point]
    chosen: Sequence[Point]
    tested: Sequence[Point]


def fronts_figure(
    methods: Mapping[str, FrontPoints], labels: tuple[str, str], title: str
) -> Figure:
    """Draw the fronts of all methods: on the validation data beside all trials, on the test data.

    A staircase is the edge of what a method's points dominate; up and right is better. On the test
    data, points that were chosen may lie behind their front.

    Args:
        methods: the points by the method's name.
        labels: of the two coordinates.
        title: above the figure.
    """
    if not any(each.chosen for each in methods.values()):
        return message_sheet(title, "No trial was finished.")
    figure = sheet(12.0, 5.5)
    figure.suptitle(plain(title, 110), fontsize="large")
    left, right = figure.subplots(1, 2)
    for axes, name in (
        (left, "Validation data: all trials"),
        (right, "Test data: what was chosen"),
    ):
        axes.set(title=name, xlabel=labels[0], ylabel=labels[1])
        tidy(axes)
    for index, each in enumerate(methods.values()):
        _scatter(left, each.trials, index, alpha=0.25)
        _scatter(left, each.chosen, index)
        _scatter(right, each.tested, index)
    for index, (name, each) in enumerate(methods.items()):
        look = style(index)
        line = {"color": look["color"], "linestyle": look["linestyle"]}
        draw_front(
            left, each.chosen, **line, marker=look["marker"], markevery=[], label=plain(name, 34)
        )
        if pareto_front(each.tested):
            draw_front(right, each.tested, **line, label="_")
    legend(figure, left, "Up and right is better")
    return figure


def _scatter(axes: Axes, points: Sequence[Point], index: int, alpha: float = 1.0) -> None:
    shown = [point for point in points if not any(map(math.isnan, point))]
    look = {**style(index), "linestyle": "none", "markersize": 6, "alpha": alpha}
    axes.plot([x for x, _ in shown], [y for _, y in shown], **look)
