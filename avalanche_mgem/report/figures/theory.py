"""Pictures of `avalanche_mgem.theory`: closed forms as lines, under points of trained models."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.files import write_atomically
from avalanche_mgem.report.figures.canvas import legend, pdf, plain, png, sheet, style, tidy
from avalanche_mgem.theory import (
    Outcome,
    TwoTasks,
    crossing,
    frozen,
    frozen_forgetting,
    optimal_p2,
    outcome,
    simulate,
)
from avalanche_mgem.theory.tasks import Array

_QUANTITIES = {
    "forgetting": "Forgetting of task 1 (below 0: task 2 helps it)",
    "first": "Error on task 1 after both",
    "second": "Error on task 2 after both",
}
_COLUMNS = (
    *("figure", "line", "x", "n", "p", "p2", "moving", "distance"),
    *("quantity", "closed_form", "simulated", "standard_error", "runs"),
)
_EVENLY = np.linspace(0, 1, 8)
"""Where on a line its simulated points are."""


@dataclass(frozen=True)
class Setting:
    """One pair of tasks, as `TwoTasks` takes it; the figures let one number of it vary."""

    n: int
    p: int
    p2: int
    shared_norm: float
    specific_norm: float
    distance: float
    noise: float
    cosine: float

    def tasks(self, **changes: ArrayLike) -> TwoTasks:
        """Return the tasks, with other values for what is named."""
        return TwoTasks(**{**asdict(self), **changes})

    def title(self, *varied: str) -> str:
        """Return what does not vary, in the paper's symbols."""
        symbols = ("n", "p", "p2", "|u|", "|q1|", "|q2 - q1|", "noise", "cosine")
        given = zip(symbols, asdict(self).items(), strict=True)
        return ", ".join(f"{symbol} = {x:g}" for symbol, (name, x) in given if name not in varied)


@dataclass(frozen=True)
class Line:
    """A closed form over one number that varies, and the simulated points on it."""

    label: str
    x: Array
    tasks: TwoTasks
    closed: Outcome
    moving: Array
    points: list[int]
    """Indices into all of the above."""
    mean: list[Outcome]
    standard_error: list[Outcome]


@dataclass(frozen=True)
class Trials:
    """How the points are simulated: each with a seed of its own."""

    runs: int
    random: np.random.Generator

    def line(self, label: str, x: Array, tasks: TwoTasks, moving: ArrayLike, at: Array) -> Line:
        """Return a line over x; at: 0 to 1, the places on it that are simulated."""
        points = np.unique((at * (len(x) - 1)).round().astype(int)).tolist()
        all_moving = np.broadcast_to(np.asarray(moving, dtype=np.float64), x.shape)
        trained = [
            simulate(
                tasks[i], int(all_moving[i]), runs=self.runs, seed=int(self.random.integers(2**32))
            )
            for i in points
        ]
        means, errors = [one.mean for one in trained], [one.standard_error for one in trained]
        return Line(label, x, tasks, outcome(tasks, moving), all_moving, points, means, errors)

    def both_trainings(self, x: Array, tasks: TwoTasks, at: Array) -> list[Line]:
        """Return a line for frozen and one for initialized training."""
        return [
            self.line("frozen", x, tasks, 0, at),
            self.line("initialized", x, tasks, tasks.p, at),
        ]


def draw_theory(
    out: str | Path,
    *,
    n: int = 20,
    p: int = 100,
    p2: int = 60,
    shared_norm: float = 0.5,
    specific_norm: float = 3.0,
    distance: float = 1.0,
    noise: float = 0.1,
    cosine: float = 0.0,
    runs: int = 400,
    seed: int = 0,
) -> list[Path]:
    """Draw forgetting and errors of two linear tasks, closed form over simulation, into a folder.

    Figures, each as .png and .pdf, with panels for forgetting and for the generalization error of
    either task after both: theory-trained (against moving + p2, from frozen to initialized
    training, at distances below, at and above the crossing), theory-p2 (against p2, with p2*) and
    theory-distance (against the distance, with the crossing). theory.csv has the simulated points
    with the closed form beside. Files that are there are replaced.

    Args:
        out: the folder, made where it is not there.
        n: training samples of each task.
        p: shared parameters.
        p2: parameters of a task's own, > n + 1.
        shared_norm: |u|.
        specific_norm: |q_1|.
        distance: |q_2 - q_1| in theory-p2.
        noise: standard deviation of the noise.
        cosine: of the angle between q_2 - q_1 and q_1.
        runs: models trained for each point, >= 2.
        seed: of the simulation.

    Returns:
        The files.

    Raises:
        ValueError: numbers outside their domain, see `TwoTasks` and `frozen`; nothing is written.
        OSError: out cannot be written.
    """
    setting = Setting(n, p, p2, shared_norm, specific_norm, distance, noise, cosine)
    frozen(setting.tasks())  # its domain is checked before anything takes time
    random = np.random.default_rng(positive_int("seed", seed, minimum=0))
    trials = Trials(positive_int("runs", runs, minimum=2), random)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "theory-trained": _trained(setting, trials),
        "theory-p2": _against_p2(setting, trials),
        "theory-distance": _against_distance(setting, trials),
    }
    files = {folder / "theory.csv": _csv({name: lines for name, (_, lines) in drawn.items()}, runs)}
    for name, (figure, _) in drawn.items():
        files |= {folder / f"{name}.png": png(figure), folder / f"{name}.pdf": pdf(figure)}
    for path, data in files.items():
        write_atomically(path, data)
    return list(files)


Drawn = tuple[Figure, list[Line]]


def _trained(setting: Setting, trials: Trials) -> Drawn:
    """Draw against the number of trained parameters, moving + p2."""
    moving = np.arange(setting.p + 1.0)
    trained = moving + setting.p2
    meet = float(np.nan_to_num(crossing(setting.tasks())))
    middle = meet or setting.distance or 1.0  # without a crossing, around the distance given
    lines = []
    for distance in (middle / 2, middle, middle * 1.5):
        tasks = setting.tasks(distance=np.full(len(moving), distance))
        label = f"distance {distance:.2f}{' (the crossing)' if distance == meet else ''}"
        lines.append(trials.line(label, trained, tasks, moving, _EVENLY))
    figure, axes = _panels(setting.title("distance"), "Parameters trained on task 2: m + p2")
    _draw(figure, axes, lines, trials.runs)
    for ax in axes:
        _mark(ax, trained[0], "frozen", side="right")
        _mark(ax, trained[-1], "initialized", side="left")
    return figure, lines


def _against_p2(setting: Setting, trials: Trials) -> Drawn:
    """Draw frozen and initialized training against p2."""
    p2 = np.arange(setting.n + 6.0, max(3 * setting.p2, setting.n + 20) + 1)
    # Most points where the lines bend.
    lines = trials.both_trainings(p2, setting.tasks(p2=p2), _EVENLY**2)
    figure, axes = _panels(setting.title("p2"), "Parameters of the task's own: p2")
    _draw_held(axes[0], setting, p2)
    _draw(figure, axes, lines, trials.runs)
    return figure, lines


def _against_distance(setting: Setting, trials: Trials) -> Drawn:
    """Draw frozen and initialized training against the distance of the tasks."""
    meet = float(np.nan_to_num(crossing(setting.tasks())))
    distance = np.linspace(0, 1.6 * meet or 2 * setting.distance or 1.0, 113)
    lines = trials.both_trainings(distance, setting.tasks(distance=distance), _EVENLY)
    figure, axes = _panels(setting.title("distance"), "Distance of the tasks: |q2 - q1|")
    if meet:
        for ax in axes[:2]:  # task 1 was learnt by both alike, so its errors cross there as well
            _mark(ax, meet, f"crossing at {meet:.2f}", side="left")
    _draw(figure, axes, lines, trials.runs)
    return figure, lines


def _draw_held(axes: Axes, setting: Setting, p2: Array) -> None:
    """Draw frozen training with Eu and Eq as they are at the setting's p2, and its lowest point."""
    tasks = setting.tasks()
    errors = frozen(tasks)
    xi = errors.specific - tasks.distance**2
    eta = errors.shared + tasks.noise**2
    held = frozen_forgetting(setting.n, p2, xi, eta)
    label = f"frozen, Eu and Eq held\nas at p2 = {setting.p2}"
    axes.plot(p2, held, color=_look(0)["color"], linestyle=":", linewidth=1.1, label=label)
    best = float(optimal_p2(setting.n, xi, eta))
    if p2[0] <= best <= p2[-1]:
        lowest = frozen_forgetting(setting.n, best, xi, eta)
        axes.plot(best, lowest, "*", color="black", markersize=9, label=f"its p2* = {best:.1f}")


def _panels(title: str, abscissa: str) -> tuple[Figure, list[Axes]]:
    figure = sheet(13.5, 4.4)
    figure.suptitle(plain(f"Two linear tasks: {title}", 120), fontsize="medium")
    axes = list(figure.subplots(1, len(_QUANTITIES)))
    for ax, name in zip(axes, _QUANTITIES.values(), strict=True):
        ax.set_title(name, fontsize="medium")
        ax.set_xlabel(abscissa)
        tidy(ax)
    axes[0].axhline(0, color="0.7", linewidth=0.8, zorder=0)
    return figure, axes


def _mark(axes: Axes, x: float, text: str, side: Literal["left", "right"]) -> None:
    """Draw a vertical line with a text on one side of it."""
    axes.axvline(x, color="0.5", linewidth=0.9, linestyle=":", zorder=0)
    axes.annotate(
        text,
        (x, 0.98),
        (4 if side == "right" else -4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if side == "right" else "right",
        va="top",
        fontsize=8,
        color="0.3",
    )


def _look(index: int) -> dict[str, Any]:
    return style(index + 4)  # vermilion first, so that black is left for what is marked


def _draw(figure: Figure, axes: Sequence[Axes], lines: Sequence[Line], runs: int) -> None:
    for index, line in enumerate(lines):
        look = _look(index)
        solid = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.3}
        dots = {**look, "linestyle": "none", "markersize": 4.5, "elinewidth": 1, "capsize": 2}
        for ax, name in zip(axes, _QUANTITIES, strict=True):
            bars = [2 * getattr(error, name) for error in line.standard_error]
            mean = [getattr(errors, name) for errors in line.mean]
            ax.plot(line.x, getattr(line.closed, name), **solid)
            ax.errorbar(line.x[line.points], mean, bars, **dots)
        axes[0].plot([], [], label=line.label, **look)  # for the legend: line and marker in one
    note = f"Lines: closed form\nPoints: {runs} models each,\nbars: 2 standard errors"
    legend(figure, axes[0], note)


def _csv(drawn: dict[str, list[Line]], runs: int) -> bytes:
    """Return the simulated points of all figures, a row a point and quantity, as CSV in UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for figure, lines in drawn.items():
        for line in lines:
            writer.writerows([figure, line.label, *row, runs] for row in _rows(line))
    return text.getvalue().encode()


def _rows(line: Line) -> Iterator[list[str]]:
    for i, mean, error in zip(line.points, line.mean, line.standard_error, strict=True):
        tasks, closed = line.tasks[i], Outcome(*(values[i] for values in line.closed))
        place = (line.x[i], tasks.n, tasks.p, tasks.p2, line.moving[i], tasks.distance)
        for name in _QUANTITIES:
            values = (getattr(errors, name) for errors in (closed, mean, error))
            yield [*(f"{x:.10g}" for x in place), name, *(repr(float(value)) for value in values)]
