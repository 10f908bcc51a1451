"""The table and the figure of growth.py."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
# What is drawn: the column that grows, its name, and that of the cost.
_AXES = (("tasks", "past tasks"), ("parameters", "parameters"))
_COSTS = (("ms", "ms an iteration"), ("mib", "MiB at most"))


def markdown(rows: Rows) -> str:
    """Return the measured values as tables, with what each past task adds."""
    by_tasks, by_size = _by_tasks(rows), _by_size(rows)
    lines = ["Milliseconds an iteration and MiB at most, by past tasks.", ""]
    lines += _table(by_tasks, "tasks", slopes=True)
    if len({row["parameters"] for row in by_size}) > 1:
        lines += ["", f"The same by parameters, with {by_size[0]['tasks']} past tasks.", ""]
        lines += _table(by_size, "parameters", slopes=False)
    return "\n".join(lines) + "\n"


def draw(rows: Rows) -> bytes:
    """Return a PNG: time and memory against past tasks, and against parameters."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    for line, (column, label) in zip(figure.subplots(2, 2), _AXES, strict=True):
        shown = _by_tasks(rows) if column == "tasks" else _by_size(rows)
        for axes, (cost, cost_label) in zip(line, _COSTS, strict=True):
            _plot(axes, shown, column, cost)
            axes.set(xlabel=label, ylabel=cost_label, xscale="log", yscale="log")
    figure.axes[0].legend(fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of y over x, [(x, y)]; NaN for a single x."""
    x, y = np.array(points, dtype=float).T
    return float(np.polyfit(x, y, 1)[0]) if len(set(x)) > 1 else float("nan")


def _by_tasks(rows: Rows) -> Rows:
    return [row for row in rows if row["model"] == rows[0]["model"]]


def _by_size(rows: Rows) -> Rows:
    """The rows of as many past tasks as the larger models have."""
    others = [row["tasks"] for row in rows if row["model"] != rows[0]["model"]]
    return [row for row in rows if row["tasks"] == (others or [rows[-1]["tasks"]])[0]]


def _methods(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _table(rows: Rows, column: str, *, slopes: bool) -> list[str]:
    at = sorted({row[column] for row in rows})
    headings = ["method", *(f"{value:,}" for value in at), *(["a task"] if slopes else [])]
    lines = [_line(headings), _line([":--"] * len(headings))]
    for method in _methods(rows):
        own = {row[column]: row for row in rows if row["method"] == method}
        cells = [f"{own[x]['ms']:.3g} / {own[x]['mib']:.3g}" if x in own else "" for x in at]
        if slopes:
            each = [slope([(x, row[cost]) for x, row in own.items()]) for cost, _ in _COSTS]
            cells.append(" / ".join(f"{value:.3g}" for value in each))
        lines.append(_line([method, *cells]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plot(axes: Axes, rows: Rows, column: str, cost: str) -> None:
    for method in _methods(rows):
        points = sorted((row[column], row[cost]) for row in rows if row["method"] == method)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=method)
