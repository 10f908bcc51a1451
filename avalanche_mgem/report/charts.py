"""The charts of the page: Vega-Lite specifications, as JSON values.

Each is a function of finished runs of one stream; `html_page` draws them with vega-embed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avalanche_mgem.report.figures.canvas import colour
from avalanche_mgem.report.figures.heatmaps import mean_matrix
from avalanche_mgem.results.histories import History
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval
from avalanche_mgem.results.summary import by_method
from avalanche_mgem.results.variants import own_settings

Chart = dict[str, Any]
_SHOWN = {"name": "shown", "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}
_FAINT = {"condition": {"param": "shown", "value": 1}, "value": 0.1}
_MOST_SETTINGS = 400  # letters in a tooltip


def tasks_chart(results: Sequence[RunResult]) -> Chart:
    """R as a heat map: methods by tested tasks, the task trained up to by a slider.

    Accuracies are means over the seeds that did not diverge; a cell that some seed did not measure
    is left empty.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
    """
    cells = _cells(results)
    tasks = max((cell["trained"] for cell in cells), default=1)
    chart = _heat_map(cells, "method", "Method")
    chart["params"] = [_slider("trained", tasks, "Trained up to task ")]
    chart["transform"] = [{"filter": "datum.trained == trained"}]
    return chart


def matrix_chart(results: Sequence[RunResult]) -> Chart:
    """R as a heat map: trained by tested tasks, the method by a menu.

    Raises:
        ValueError: as `tasks_chart`.
    """
    methods = list(by_method(results))
    chart = _heat_map(_cells(results), "trained", "Trained up to task")
    chart["params"] = [_menu("method", methods, "Method ")]
    chart["transform"] = [{"filter": "datum.method == method"}]
    return chart


def tradeoff_chart(results: Sequence[RunResult]) -> Chart:
    """Learning accuracy against backward transfer, a dot a seed; the tooltip has the settings.

    Raises:
        ValueError: as `summary.by_method`.
    """
    runs = [run for runs in by_method(results).values() for run in runs]
    points = [
        {
            "method": run.method,
            "seed": run.seed,
            **{name.upper(): scores[name] for name in ("acc", "bwt", "la")},
            "settings": _settings(run),
        }
        for run in runs
        if not math.isnan((scores := run.scores)["bwt"] + scores["la"])
    ]
    fields = ("method", "seed", "ACC", "LA", "BWT", "settings")
    return {
        "data": {"values": points},
        "params": [_SHOWN],
        "mark": {"type": "point", "filled": True, "size": 90},
        "encoding": {
            "x": {**_axis("LA", "Learning accuracy"), "scale": {"zero": False}},
            "y": {**_axis("BWT", "Backward transfer"), "scale": {"zero": False}},
            "color": _colours(results),
            "opacity": _FAINT,
            "tooltip": [_told(name) for name in fields],
        },
        "width": 460,
        "height": 340,
    }


def history_chart(results: Sequence[RunResult], histories: Sequence[History]) -> Chart | None:
    """What the restriction did over training, a line a method, the metric by a menu.

    The line is the mean over the seeds, the band its 95% interval (Student's t).

    Args:
        results: runs of one stream.
        histories: of each run, its metrics over training.

    Returns:
        None where no run has such a metric.
    """
    rows = _history_rows(results, histories)
    metrics = sorted({row["metric"] for row in rows})
    if not rows:
        return None
    first = next((name for name in metrics if name.startswith("Restriction")), metrics[0])
    shared = {"x": _axis("iteration", "Iterations trained"), "color": _colours(results)}
    value = {"y": {**_axis("mean", "Mean over the seeds"), "scale": {"zero": False}}}
    band = {"y": {**_axis("low", "Mean over the seeds"), "scale": {"zero": False}}}
    told = [_told(name) for name in ("method", "iteration", "mean", "seeds")]
    return {
        "data": {"values": rows},
        "params": [_menu("metric", metrics, "Metric ", first)],
        "transform": [{"filter": "datum.metric == metric"}],
        "encoding": shared,
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {**band, "y2": {"field": "high"}},
            },
            {
                "params": [_SHOWN],
                "mark": {"type": "line", "point": True},
                "encoding": {**value, "opacity": _FAINT, "tooltip": told},
            },
        ],
        "width": 620,
        "height": 300,
    }


def _cells(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    cells = []
    for method, runs in by_method(results).items():
        matrix = mean_matrix(method, runs)
        cells += [
            {
                "method": method,
                "trained": row + 1,
                "tested": column + 1,
                "accuracy": round(float(value), 4),
            }
            for (row, column), value in np.ndenumerate(matrix)
            if np.isfinite(value)
        ]
    return cells


def _heat_map(cells: Sequence[Mapping[str, Any]], row: str, title: str) -> Chart:
    accuracies = [cell["accuracy"] for cell in cells] or [0.0]
    scale = {"scheme": "viridis", "domain": [min(accuracies), max(accuracies)]}
    return {
        "data": {"values": list(cells)},
        "mark": "rect",
        "encoding": {
            "x": {
                "field": "tested",
                "type": "ordinal",
                "title": "Tested on task",
                "axis": {"labelAngle": 0},
            },
            "y": {"field": row, "type": "ordinal", "sort": None, "title": title},
            "color": {**_axis("accuracy", "Accuracy"), "scale": scale},
            "tooltip": [_told(name) for name in ("method", "trained", "tested", "accuracy")],
        },
        "width": {"step": 34},
        "height": {"step": 24},
    }


def _history_rows(
    results: Sequence[RunResult], histories: Sequence[History]
) -> list[dict[str, Any]]:
    values: dict[tuple[str, str, int], list[float]] = {}
    for run, history in zip(results, histories, strict=True):
        for metric, points in history.items():
            for iteration, value in points:
                if math.isfinite(value):
                    values.setdefault((metric, run.method, iteration), []).append(value)
    rows = []
    for (metric, method, iteration), seeds in sorted(values.items()):
        mean, half_width = mean_interval(seeds)
        row: dict[str, Any] = {"metric": metric, "method": method, "iteration": iteration}
        row |= {"mean": _short(mean), "seeds": len(seeds)}
        if math.isfinite(half_width):
            row |= {"low": _short(mean - half_width), "high": _short(mean + half_width)}
        rows.append(row)
    return rows


def _short(value: float) -> float:
    """Return the number to four digits, which a picture does not miss."""
    return float(f"{value:.4g}")


def _settings(run: RunResult) -> str:
    text = ", ".join(f"{name}={value}" for name, value in own_settings(run).items())
    return text if len(text) <= _MOST_SETTINGS else text[: _MOST_SETTINGS - 3] + "..."


def _axis(field: str, title: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title}


def _colours(results: Sequence[RunResult]) -> dict[str, Any]:
    methods = list(by_method(results))
    scale = {"domain": methods, "range": [colour(index) for index in range(len(methods))]}
    legend = {"symbolOpacity": 1}  # that of a band would be as pale as it
    return {
        "field": "method",
        "type": "nominal",
        "title": "Method",
        "scale": scale,
        "legend": legend,
    }


def _told(field: str) -> dict[str, Any]:
    numbers = {"accuracy": ".3f", "ACC": ".3f", "LA": ".3f", "BWT": ".3f", "mean": ".4g"}
    told: dict[str, Any] = {"field": field, "title": field}
    return {**told, "type": "quantitative", "format": numbers[field]} if field in numbers else told


def _slider(name: str, last: int, label: str) -> dict[str, Any]:
    bind = {"input": "range", "min": 1, "max": last, "step": 1, "name": label}
    return {"name": name, "value": last, "bind": bind}


def _menu(name: str, options: Sequence[str], label: str, value: str | None = None) -> Chart:
    bind = {"input": "select", "options": list(options), "name": label}
    return {"name": name, "value": options[0] if value is None else value, "bind": bind}
