"""What is wrong, in a line on stderr, and the exit code that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_told() -> Iterator[None]:
    """Say what is wrong in a line on stderr and exit with 1; with 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command continues.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        from avalanche_mgem.experiment import RunsFailedError

        if isinstance(error, RuntimeError) and not isinstance(error, RunsFailedError):
            raise
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
