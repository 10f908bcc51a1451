"""A picture of `avalanche_mgem.theory.magnitude`: errors by magnitude, and the best magnitudes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from avalanche_mgem.arguments import bounded_int, positive_int
from avalanche_mgem.files import write_atomically
from avalanche_mgem.report.figures.canvas import legend, pdf, plain, png, sheet, style, tidy
from avalanche_mgem.theory import (
    TwoTasks,
    optimal_magnitudes,
    scaled,
    sequence_errors,
    simulate_sequence,
)
from avalanche_mgem.theory.magnitude import require_one
from avalanche_mgem.theory.tasks import Array

_COLUMNS = ("distance", "magnitude", "how", "closed_form", "simulated", "standard_error", "runs")
_FACTORS = (0.5, 1.0, 2.0)
"""Of the distance given, those that are drawn."""
_POINTS = np.linspace(0, 1, 6)
_DECAYS = (0.5, 1.0)


@dataclass(frozen=True)
class Point:
    """The mean error on both tasks at one magnitude, of trained models."""

    distance: float
    magnitude: float
    how: str
    closed_form: float
    """NaN for how="steps", which has none."""
    simulated: float
    standard_error: float


def draw_magnitudes(
    out: str | Path, *, n_tasks: int = 30, runs: int = 400, seed: int = 0, **tasks: float
) -> list[Path]:
    """Draw what a magnitude between frozen and initialized does to linear tasks, into a folder.

    theory-magnitude.png and .pdf have three panels: the mean error on two tasks against the
    magnitude, closed form over simulation, with gradient descent of scaled steps, which has no
    closed form, beside; the best magnitude on task 2 against the distance of the tasks; and on task
    t of a sequence, beside t^-0.5 and t^-1. theory-magnitude.csv has the simulated points. Files
    that are there are replaced.

    Args:
        out: the folder, made where it is not there.
        n_tasks: how long the sequence is, >= 2.
        runs: models trained for each point, >= 2.
        seed: of the simulation.
        tasks: as `TwoTasks` takes them; `cosine` plays no part. Drawn are half, once and twice the
            distance.

    Returns:
        The files.

    Raises:
        ValueError: numbers outside their domain; nothing is written.
        OSError: out cannot be written.
    """
    require_one(TwoTasks(**tasks))
    count = bounded_int("n_tasks", n_tasks, minimum=2)
    runs = bounded_int("runs", runs, minimum=2)
    random = np.random.default_rng(positive_int("seed", seed, minimum=0))
    # A distance of 0 would be one line three times.
    middle = tasks["distance"] or 1.0
    lines = [TwoTasks(**{**tasks, "distance": f * middle, "cosine": 0.0}) for f in _FACTORS]
    figure = sheet(14.5, 4.4)
    given = (f"{name} = {value:g}" for name, value in tasks.items() if name != "distance")
    figure.suptitle(plain(f"Linear tasks: {', '.join(given)}", 120), fontsize="medium")
    axes = list(figure.subplots(1, 3))
    points = [_against_magnitude(axes[0], i, line, runs, random) for i, line in enumerate(lines)]
    _against_distance(axes[1], tasks, np.linspace(0, 2 * _FACTORS[-1] * middle, 41))
    _against_tasks(axes[2], lines, count)
    for ax in axes:
        tidy(ax)
    note = f"Points: {runs} models each,\nbars: 2 standard errors.\nCrosses: scaled steps"
    legend(figure, axes[2], note)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "theory-magnitude"
    files = {
        stem.with_suffix(".csv"): _csv([point for each in points for point in each], runs),
        stem.with_suffix(".png"): png(figure),
        stem.with_suffix(".pdf"): pdf(figure),
    }
    for path, data in files.items():
        write_atomically(path, data)
    return list(files)


def _look(index: int) -> dict[str, Any]:
    return style(index + 4)  # black is left for t^-p


def _against_magnitude(
    axes: Axes, index: int, tasks: TwoTasks, runs: int, random: np.random.Generator
) -> list[Point]:
    """Draw the mean error on two tasks at one distance; return the simulated points."""
    m = np.linspace(0, 1, 101)
    errors, look = scaled(tasks, m), _look(index)
    axes.plot(m, (errors.first + errors.second) / 2, color=look["color"], linewidth=1.3)
    points: list[Point] = []
    dots: dict[str, Any] = {"linestyle": "none", "markersize": 4.5, "elinewidth": 1, "capsize": 2}
    for how, marker in (("way", look["marker"]), ("steps", "x")):
        own = [_simulated(tasks, float(at), how, runs, random) for at in _POINTS]
        bars = [2 * point.standard_error for point in own]
        means = [point.simulated for point in own]
        axes.errorbar(_POINTS, means, bars, marker=marker, color=look["color"], **dots)
        points += own
    axes.set_title("Mean error on both tasks", fontsize="medium")
    axes.set_xlabel("Magnitude m: 0 frozen, 1 initialized")
    return points


def _simulated(
    tasks: TwoTasks, m: float, how: str, runs: int, random: np.random.Generator
) -> Point:
    seed = int(random.integers(2**32))
    found = simulate_sequence(tasks, [1.0, m], how=how, runs=runs, seed=seed)  # type: ignore[arg-type]
    closed = float(np.mean(sequence_errors(tasks, [1.0, m])[1])) if how == "way" else np.nan
    # Both errors move together: at most this, which overstates rather than understates.
    spread = float(np.mean(found.standard_error[1]))
    distance = float(tasks.distance)
    return Point(distance, m, how, closed, float(np.mean(found.mean[1])), spread)


def _against_distance(axes: Axes, tasks: dict[str, float], distances: Array) -> None:
    for kept, line, label in ((False, "-", "one head"), (True, "--", "a head for each task")):
        best = [
            optimal_magnitudes(TwoTasks(**{**tasks, "distance": d}), 2, kept=kept)[1]
            for d in distances
        ]
        axes.plot(distances, best, linestyle=line, color="0.35", linewidth=1.3, label=label)
    axes.set_title("Best magnitude on task 2", fontsize="medium")
    axes.set_xlabel("Distance of the tasks: |q2 - q1|")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(frameon=False, fontsize=8)


def _against_tasks(axes: Axes, lines: Sequence[TwoTasks], count: int) -> None:
    """Draw the best magnitude on each task of a sequence."""
    t = np.arange(1, count + 1)
    for index, tasks in enumerate(lines):
        look = {**_look(index), "linestyle": "-", "markersize": 3.5, "linewidth": 1.2}
        kept = optimal_magnitudes(tasks, count, kept=True)
        axes.plot(t[1:], kept[1:], label=f"distance {float(tasks.distance):g}", **look)
    replaced = optimal_magnitudes(lines[len(lines) // 2], count)
    dotted = {**_look(len(lines) // 2), "linestyle": ":", "marker": "", "linewidth": 1.2}
    middle = float(lines[len(lines) // 2].distance)
    axes.plot(t[1:], replaced[1:], label=f"one head, distance {middle:g}", **dotted)
    for p, line in zip(_DECAYS, ("--", "-."), strict=True):
        axes.plot(t, t**-p, color="black", linestyle=line, linewidth=1.1, label=f"t^-{p:g}")
    axes.set(xscale="log", yscale="log")
    axes.set_title("Best magnitude on task t, a head for each task", fontsize="medium")
    axes.set_xlabel("Task t")


def _csv(points: Sequence[Point], runs: int) -> bytes:
    """Return the simulated points, a row each, as CSV in UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for point in points:
        numbers = (point.closed_form, point.simulated, point.standard_error)
        shown = ["" if np.isnan(number) else repr(float(number)) for number in numbers]
        writer.writerow([f"{point.distance:.10g}", f"{point.magnitude:g}", point.how, *shown, runs])
    return text.getvalue().encode()
