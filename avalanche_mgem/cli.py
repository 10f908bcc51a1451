"""The command avalanche-mgem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from avalanche_mgem import __version__
from avalanche_mgem.arguments import positive_int

app = typer.Typer(
    help="Restrict what an update may do to the past, and compare with Avalanche's baselines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def compare(
    stream: Annotated[
        str,
        typer.Option(help="KIND-DATA: permuted, rotated or split; digits, mnist or a FILE.npz."),
    ] = "permuted-digits",
    methods: Annotated[
        str | None, typer.Option(help="Names, with commas between; default: all.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    experiences: Annotated[int, typer.Option(help="Length of the stream.")] = 10,
    train_per_experience: Annotated[
        int | None,
        typer.Option(
            help="Training samples of each experience; default: 750 for digits, else all."
        ),
    ] = None,
    test_per_experience: Annotated[
        int | None, typer.Option(help="Test samples of each experience; default: all.")
    ] = None,
    memory: Annotated[int, typer.Option(help="Patterns kept of each experience.")] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over each experience.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Training minibatch.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Of plain SGD.")] = 0.1,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="METHOD.SETTING=VALUE, such as mgem-d.memory_groups=8."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; default: ./data.")
    ] = None,
    download: Annotated[bool, typer.Option(help="Download what is not there.")] = True,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    jobs: Annotated[int | None, typer.Option(help="Worker processes; default: the cores.")] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("mgem-compare"),
) -> None:
    """Train methods on a stream and show how they compare; run again, it continues."""
    if train_per_experience is None and stream.endswith("digits") and "split" not in stream:
        train_per_experience = 750
    arguments: dict[str, Any] = {
        "n_experiences": experiences,
        "train_per_experience": train_per_experience,
        "test_per_experience": test_per_experience,
        "data_root": None if data_root is None else str(data_root),
        "download": download,
    }
    with _errors_told():
        # Imported here, because Avalanche takes seconds to import and --help should not.
        from avalanche_mgem.experiment import METHODS, NamedStream, Training
        from avalanche_mgem.experiment import compare as run_comparison
        from avalanche_mgem.experiment.registry import parse_settings
        from avalanche_mgem.experiment.workers import available_cores

        positive_int("experiences", experiences)
        run_comparison(
            METHODS if methods is None else [m.strip() for m in methods.split(",")],
            stream=NamedStream(stream, arguments),
            seeds=seeds,
            training=Training(
                learning_rate=learning_rate,
                batch_size=batch_size,
                epochs=epochs,
                device=device,
                memory=memory,
            ),
            settings=parse_settings(assignments or []),
            out=out,
            jobs=available_cores() if jobs is None else jobs,
            console=Console(),
        )


@contextmanager
def _errors_told() -> Iterator[None]:
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


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
