"""The command avalanche-mgem."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from avalanche_mgem import __version__

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
            help="Training samples of each experience; default: 500 for digits, else all."
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
    # Imported here, because Avalanche takes seconds to import and --help should not.
    from avalanche_mgem.experiment import METHODS, NamedStream, RunsFailedError, Training
    from avalanche_mgem.experiment import compare as run_comparison
    from avalanche_mgem.experiment.registry import parse_settings

    if train_per_experience is None and stream.endswith("digits") and "split" not in stream:
        train_per_experience = 500
    arguments: dict[str, Any] = {
        "n_experiences": experiences,
        "train_per_experience": train_per_experience,
        "test_per_experience": test_per_experience,
        "data_root": None if data_root is None else str(data_root),
        "download": download,
    }
    try:
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
            jobs=(os.cpu_count() or 1) if jobs is None else jobs,
            console=Console(),
        )
    except (ValueError, RunsFailedError) as error:
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command continues.", err=True)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line."""
    app()
