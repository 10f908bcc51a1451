"""avalanche-mgem report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from avalanche_mgem.cli.errors import errors_told
from avalanche_mgem.cli.groups import with_groups
from avalanche_mgem.cli.logs import log_lines
from avalanche_mgem.cli.options import LogOptions, names, two_names


@with_groups
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Results folders of compare.", metavar="DIR...")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for tables and plots: new, empty or an earlier report.")
    ] = Path("mgem-report"),
    methods: Annotated[
        str | None, typer.Option(help="Names, with commas between; default: all.")
    ] = None,
    streams: Annotated[
        str | None, typer.Option(help="Names, with commas between; default: all.")
    ] = None,
    paired: Annotated[
        str | None,
        typer.Option(
            help="Two methods A,B to compare seed by seed: A - B, its interval, Wilcoxon's p.",
            metavar="A,B",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option(help="Write a TensorBoard log with an HParams tab.")
    ] = True,
    *,
    log: LogOptions,
) -> None:
    """Make tables and plots again from the finished runs of one or several comparisons."""
    with errors_told(), log_lines(log.verbose):
        from avalanche_mgem.experiment import load_results
        from avalanche_mgem.report.folder import write_report
        from avalanche_mgem.report.markdown import results_table
        from avalanche_mgem.report.paired import paired_table
        from avalanche_mgem.results.paired import paired_comparisons
        from avalanche_mgem.results.summary import by_stream, on_validation

        results = load_results(folders, only_methods=names(methods), only_streams=names(streams))
        two = None if paired is None else two_names(paired, {run.method for run in results})
        write_report(results, out, tensorboard=tensorboard, paired=two)
        console = Console()
        for runs in by_stream(results).values():
            for each in filter(None, (runs, on_validation(runs))):
                console.print(results_table(each, console.width))
        for comparison in [] if two is None else paired_comparisons(results, two):
            console.print(paired_table(comparison))
        lines = [f"Tables and plots: {out}"]
        if tensorboard:
            lines.append(f"Settings and scores: tensorboard --logdir {out / 'tensorboard'}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
