"""avalanche-mgem theory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.cli.errors import errors_told
from avalanche_mgem.cli.groups import with_groups
from avalanche_mgem.cli.logs import log_lines
from avalanche_mgem.cli.options import LogOptions


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The two tasks, by the names of `TwoTasks`."""

    n: Annotated[int, typer.Option("--n", help="Training samples of each task.")] = 20
    p: Annotated[int, typer.Option("--p", help="Shared parameters.")] = 100
    p2: Annotated[int, typer.Option("--p2", help="Parameters of a task's own, > n + 1.")] = 60
    shared_norm: Annotated[float, typer.Option(help="Norm of the shared parameters.")] = 0.5
    specific_norm: Annotated[float, typer.Option(help="Norm of task 1's own parameters.")] = 3.0
    distance: Annotated[float, typer.Option(help="Between the tasks' own parameters.")] = 1.0
    noise: Annotated[float, typer.Option(help="Its standard deviation.")] = 0.1
    cosine: Annotated[
        float, typer.Option(help="Of the angle between task 1's own parameters and the change.")
    ] = 0.0


@with_groups
def theory(
    tasks: TaskOptions,
    runs: Annotated[int, typer.Option(help="Models trained for each simulated point.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("mgem-theory"),
    *,
    log: LogOptions,
) -> None:
    """Draw what linear tasks forget as more is trained, or goes farther: theory and simulation."""
    with errors_told(), log_lines(log.verbose):
        from avalanche_mgem.theory import TwoTasks, frozen

        # What is out of range is told before matplotlib is imported.
        frozen(TwoTasks(**vars(tasks)))
        positive_int("seed", seed, minimum=0)
        positive_int("runs", runs, minimum=2)
        from avalanche_mgem.report.figures.magnitudes import draw_magnitudes
        from avalanche_mgem.report.figures.theory import draw_theory

        for draw in (draw_theory, draw_magnitudes):
            for file in draw(out, **vars(tasks), runs=runs, seed=seed):
                typer.echo(file)
