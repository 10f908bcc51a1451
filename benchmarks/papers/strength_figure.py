"""The frontier of learning and remembering over the memory strength, from strength.py's results.

    python benchmarks/papers/strength_figure.py DIR --out DIR

DIR holds the runs of `strength.py compare`, with --frontier or without. Draws, for GEM and each
mGEM, a curve of LA against BWT over the fixed memory strengths (means over the seeds, with their
95% intervals, Student's t), and the point of "auto" as a star; up and right is better. In the
legend: the hypervolume of the curve's means with its reference point at LA 0 and BWT -1, the area
that they dominate, and that of "auto" alone. Written to frontier.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_mgem.experiment import RunResult, load_results
from avalanche_mgem.results.statistics import mean_interval

REFERENCE = (0.0, -1.0)  # LA, BWT
Point = tuple[float, float]


def main(
    runs: Annotated[Path, typer.Argument(help="Results folder of `strength.py compare`.")],
    out: Annotated[Path, typer.Option(help="Where frontier.png is written.")],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    figure(load_results(runs)).savefig(out / "frontier.png", dpi=120)


def figure(results: Sequence[RunResult]) -> Figure:
    """Return the figure."""
    drawn = Figure(figsize=(8, 5.5), layout="constrained")
    axes = drawn.subplots()
    kinds: dict[str, dict[float | str, list[RunResult]]] = {}
    for run in results:
        kind, _, at = run.method.rpartition(" ")
        strength = at if at == "auto" else float(at.removeprefix("gamma="))
        kinds.setdefault(kind, {}).setdefault(strength, []).append(run)
    for index, (kind, by_strength) in enumerate(sorted(kinds.items())):
        _draw(axes, kind, by_strength, f"C{index}")
    axes.set_xlabel("learning accuracy (LA)")
    axes.set_ylabel("backward transfer (BWT)")
    axes.set_title(f"Memory strength: {results[0].stream}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn


def hypervolume(points: Sequence[Point], reference: Point = REFERENCE) -> float:
    """Return the area that the points dominate, of those above the reference point."""
    area, height = 0.0, reference[1]
    above = [point for point in points if point[0] > reference[0] and point[1] > reference[1]]
    for x, y in sorted(above, reverse=True):
        if y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area


def _draw(
    axes: Axes, kind: str, by_strength: dict[float | str, list[RunResult]], colour: str
) -> None:
    fixed = sorted(strength for strength in by_strength if isinstance(strength, float))
    means = [_bars(axes, by_strength[strength], colour) for strength in fixed]
    label = f"{kind}: hypervolume {hypervolume(means):.4f}"
    if "auto" in by_strength:
        x, y = _bars(axes, by_strength["auto"], colour)
        label += f", auto {hypervolume([(x, y)]):.4f}"
        axes.plot(x, y, "*", color=colour, markersize=14, markeredgecolor="black", zorder=3)
    axes.plot(*zip(*means, strict=True), "o-", color=colour, markersize=4, label=label)
    for strength, point in zip(fixed, means, strict=True):
        axes.annotate(f"{strength:g}", point, textcoords="offset points", xytext=(4, 4), fontsize=7)


def _bars(axes: Axes, runs: Sequence[RunResult], colour: str) -> Point:
    """Draw the intervals of both scores; return their means."""
    (x, across), (y, along) = (
        mean_interval([run.scores[name] for run in runs]) for name in ("la", "bwt")
    )
    axes.errorbar(x, y, yerr=along, xerr=across, color=colour, alpha=0.4, linewidth=0.8)
    return x, y


if __name__ == "__main__":
    typer.run(main)
