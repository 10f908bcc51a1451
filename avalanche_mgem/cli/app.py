"""The command avalanche-mgem and its parts."""

from __future__ import annotations

from typing import Annotated

import typer

from avalanche_mgem import __version__
from avalanche_mgem.cli.compare import compare
from avalanche_mgem.cli.logs import VERBOSE_HELP, log_lines
from avalanche_mgem.cli.report import report
from avalanche_mgem.cli.sweep import sweep
from avalanche_mgem.cli.theory import theory

app = typer.Typer(
    help="Restrict what an update may do to the past, and compare with Avalanche's baselines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, sweep, report, theory):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help=VERBOSE_HELP)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    context.with_resource(log_lines(verbose))


def main() -> None:
    """Run the command line."""
    app()
