"""Why a fixed memory strength collapses: the memory's loss, the push and its stability, traced.

    python benchmarks/papers/collapse.py --out DIR
    python benchmarks/papers/collapse.py --seeds 0 --experiences 4 --out DIR

pd-mGEM(8, 4) on 20 rotations of digits, at memory strength 0.5 and "auto". At every second
iteration in which the memory strength pushed: the mean loss on the memory; ||push|| / ||g||; and
lr gamma T lambda, with T the number of past tasks and lambda the curvature of the mean loss on the
memory along the push (a product with its Hessian). Gradient descent on that loss is unstable where
it exceeds 2. Writes collapse.csv, and collapse.png of the seed that ends lowest at 0.5.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from avalanche.training.plugins import SupervisedPlugin
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_mgem import MGEM, MGEMPlugin
from avalanche_mgem.experiment import METHODS, Method, NamedStream, Training, compare
from avalanche_mgem.files import write_atomically

STRENGTHS = (0.5, "auto")
EVERY = 2  # iterations
_TITLES = (
    "mean loss on the memory",
    "push / gradient, lengths",
    "learning rate x strength x tasks x curvature",
)


class Moment(NamedTuple):
    """What an iteration was."""

    iteration: int
    loss: float
    push: float
    stability: float


class Trace(SupervisedPlugin[Any]):
    """Keeps what the push of an MGEMPlugin is and does, before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Moment] = []

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Look at an iteration."""
        plugin = next(p for p in strategy.plugins if isinstance(p, MGEMPlugin))
        projection, iteration = plugin.last_projection, strategy.clock.train_iterations
        if iteration % EVERY or projection is None or projection.push == 0.0:
            return
        tasks = plugin.memory.closed_tasks()
        parameters = [p for p in strategy.model.parameters() if p.requires_grad]
        losses = [
            torch.nn.functional.cross_entropy(strategy.model(group.batch[0]), group.batch[1])
            * group.share
            for groups in tasks
            for group in groups
        ]
        loss = torch.stack(losses).sum() / len(tasks)
        slope = torch.autograd.grad(loss, parameters, create_graph=True)
        along = [part.detach() for part in slope]  # the push, but for its length
        product = sum((a * b).sum() for a, b in zip(slope, along, strict=True))
        bent = torch.autograd.grad(product, parameters)
        square = float(sum((part * part).sum() for part in along))
        curvature = float(sum((a * b).sum() for a, b in zip(bent, along, strict=True))) / square
        rate = strategy.optimizer.param_groups[0]["lr"] * plugin.last_memory_strength * len(tasks)
        self.moments.append(Moment(iteration, float(loss), projection.push, rate * curvature))


TRACES: list[Trace] = []  # of the runs in this process, in their order


def traced(**options: Any) -> MGEM:
    """Return the strategy MGEM with a trace beside its plugin."""
    strategy = MGEM(**options)
    TRACES.append(Trace())
    strategy.plugins.append(TRACES[-1])
    return strategy


def main(
    out: Annotated[Path, typer.Option(help="Results folder.")],
    seeds: Annotated[list[int] | None, typer.Option(help="A seed; repeatable.")] = None,
    experiences: int = 20,
) -> None:
    chosen = seeds or [0, 1, 2]
    settings = dict(METHODS["mgem-pd"].settings)
    kinds = [
        Method(f"pd {strength}", traced, {**settings, "memory_strength": strength})
        for strength in STRENGTHS
    ]
    stream = NamedStream(
        "rotated-digits", {"n_experiences": experiences, "train_per_experience": 750}
    )
    TRACES.clear()
    # A new folder each time: a run that is finished there would leave no trace.
    results = compare(kinds, stream=stream, seeds=chosen, training=Training(), out=out / "runs")
    traces = [trace for trace in TRACES if trace.moments]  # a method is also made to be checked
    if len(traces) < len(results):
        raise typer.BadParameter("--out holds finished runs, which leave no trace: name a new one")
    rows = [
        (result.method, result.seed, result.scores["acc"], *moment)
        for result, trace in zip(results, traces, strict=True)
        for moment in trace.moments
    ]
    write_atomically(out / "collapse.csv", _csv(rows))
    at_fixed = [r for r in results if r.method == kinds[0].name]
    lowest = min(at_fixed, key=lambda run: run.scores["acc"]).seed
    _draw([row for row in rows if row[1] == lowest], out / "collapse.png")


def _csv(rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "seed", "acc", *Moment._fields))
    writer.writerows(
        (*row[:2], *(f"{value:.4g}" if isinstance(value, float) else value for value in row[2:]))
        for row in rows
    )
    return text.getvalue().encode()


def _draw(rows: list[tuple[Any, ...]], path: Path) -> None:
    """Draw three rows of axes, a column a memory strength."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    names = list(dict.fromkeys(row[0] for row in rows))
    axes = figure.subplots(3, len(names), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(names):
        own = np.array([row[3:] for row in rows if row[0] == name], dtype=float)
        acc = next(row[2] for row in rows if row[0] == name)
        for line, title in enumerate(_TITLES):
            _panel(axes[line, column], own[:, 0], own[:, line + 1], title if column == 0 else "")
        axes[2, column].axhline(2.0, color="0.4", linestyle="--", linewidth=1)
        axes[2, column].set_xlabel("iteration")
        axes[0, column].set_title(f"{name}: ACC {acc:.3f}")
    figure.savefig(path, dpi=120)


def _panel(axes: Axes, x: Any, y: Any, title: str) -> None:
    axes.plot(x, np.maximum(y, 1e-4), linewidth=0.6)
    axes.set_yscale("log")
    axes.set_ylabel(title, fontsize=8)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    typer.run(main)
