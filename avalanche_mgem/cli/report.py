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
    html: Annotated[
        bool,
        typer.Option("--html", help="Write report.html, one file with charts to try (extra html)."),
    ] = False,
    *,
    log: LogOptions,
) -> None:
    """Make tables and plots again from the finished runs of one or several comparisons."""
    with errors_told(), log_lines(log.verbose):
        from avalanche_mgem.experiment.loading import load_runs
        from avalanche_mgem.report.folder import write_report
        from avalanche_mgem.report.markdown import results_table
        from avalanche_mgem.report.paired import paired_table
        from avalanche_mgem.results.paired import paired_comparisons
        from avalanche_mgem.results.summary import by_stream, on_validation

        runs = load_runs(folders, only_methods=names(methods), only_streams=names(streams))
        results = [run for run, _ in runs]
        two = None if paired is None else two_names(paired, {run.method for run in results})
        write_report(
            results,
            out,
            tensorboard=tensorboard,
            paired=two,
            html=html,
            metrics=[metrics for _, metrics in runs],
        )
        console = Console()
        for of_stream in by_stream(results).values():
            for each in filter(None, (of_stream, on_validation(of_stream))):
                console.print(results_table(each, console.width))
        for comparison in [] if two is None else paired_comparisons(results, two):
            console.print(paired_table(comparison))
        lines = [f"Tables and plots: {out}"]
        if html:
            lines.append(f"Open in a browser: {out / 'report.html'}")
        if tensorboard:
            lines.append(f"Settings and scores: tensorboard --logdir {out / 'tensorboard'}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
