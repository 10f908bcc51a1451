"""The command avalanche-mgem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
        typer.Option(
            help="KIND-DATA: permuted, rotated or split; digits, mnist, fashion-mnist, cifar10, "
            "cifar100 or a FILE.npz. Or domains-digit-five, domains:A.npz,B.npz."
        ),
    ] = "permuted-digits",
    methods: Annotated[
        str | None, typer.Option(help="Names, with commas between; default: ten of --list.")
    ] = None,
    methods_file: Annotated[
        Path | None, typer.Option(help="TOML file of further methods: variants of the known ones.")
    ] = None,
    list_methods: Annotated[
        bool, typer.Option("--list", help="Show the methods and their settings, and exit.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    experiences: Annotated[
        int | None, typer.Option(help="Length of the stream; default: 10, split: 5, domains: all.")
    ] = None,
    train_per_experience: Annotated[
        int | None,
        typer.Option(
            help="Training samples of each experience; default: 750 for digits, else all."
        ),
    ] = None,
    test_per_experience: Annotated[
        int | None, typer.Option(help="Test samples of each experience; default: all.")
    ] = None,
    class_order: Annotated[
        str | None, typer.Option(help="Of split streams, such as 3,1,0,2; default: by the seed.")
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="Of domains streams, such as mnist,usps; default: all.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width to resize images to.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="mlp, slim-resnet18, cnn5, or your own package.module:factory.")
    ] = "mlp",
    hidden: Annotated[
        str | None, typer.Option(help="Widths of the mlp's hidden layers; default: 100,100.")
    ] = None,
    heads: Annotated[
        str,
        typer.Option(
            help="single; growing, as classes come; multi, one a task (task-incremental)."
        ),
    ] = "single",
    task_labels: Annotated[
        bool, typer.Option(help="A task label an experience; --heads multi implies it.")
    ] = False,
    memory: Annotated[int, typer.Option(help="Patterns kept of each experience.")] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over each experience.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Training minibatch.")] = 10,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    learning_rate: Annotated[float, typer.Option(help="Of the optimiser.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Of the optimiser.")] = 0.0,
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
    with _errors_told():
        # Imported here, because Avalanche takes seconds to import and --help should not.
        from avalanche_mgem.experiment import (
            DEFAULT_METHODS,
            METHODS,
            NamedStream,
            Training,
            load_methods,
            make_model_factory,
            methods_table,
        )
        from avalanche_mgem.experiment import compare as run_comparison
        from avalanche_mgem.experiment.registry import parse_settings
        from avalanche_mgem.experiment.workers import available_cores

        own = {} if methods_file is None else {m.name: m for m in load_methods(methods_file)}
        if list_methods:
            Console().print(methods_table({**METHODS, **own}.values()))
            return
        default = list(dict.fromkeys([*DEFAULT_METHODS, *own]))
        names = _names(methods) or default
        if experiences is not None:
            positive_int("experiences", experiences)
        given = {
            "class_order": class_order,
            "domains": domains,
            "image_size": image_size,
            "task_labels": _task_labels(stream, model, heads, task_labels) or None,
        }
        arguments = {
            **_sizes(stream, experiences, train_per_experience),
            "test_per_experience": test_per_experience,
            "data_root": None if data_root is None else str(data_root),
            "download": download,
            **{name: value for name, value in given.items() if value is not None},
        }
        run_comparison(
            [own.get(name, name) for name in names],
            stream=NamedStream(stream, arguments),
            seeds=seeds,
            training=Training(
                optimizer=optimizer,
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                batch_size=batch_size,
                epochs=epochs,
                device=device,
                memory=memory,
            ),
            model=make_model_factory(model, heads=heads, hidden=_widths(hidden)),
            settings=parse_settings(assignments or []),
            out=out,
            jobs=available_cores() if jobs is None else jobs,
            console=Console(),
        )


@app.command()
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
    tensorboard: Annotated[
        bool, typer.Option(help="Write a TensorBoard log with an HParams tab.")
    ] = True,
) -> None:
    """Make tables and plots again from the finished runs of one or several comparisons."""
    with _errors_told():
        from avalanche_mgem.experiment.folders import load_results
        from avalanche_mgem.experiment.report import results_table
        from avalanche_mgem.experiment.report_folder import write_report
        from avalanche_mgem.experiment.summary import by_stream

        results = load_results(folders, only_methods=_names(methods), only_streams=_names(streams))
        write_report(results, out, tensorboard=tensorboard)
        console = Console()
        for runs in by_stream(results).values():
            console.print(results_table(runs, console.width))
        lines = [f"Tables and plots: {out}"]
        if tensorboard:
            lines.append(f"Settings and scores: tensorboard --logdir {out / 'tensorboard'}")
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sizes(
    stream: str, experiences: int | None, train_per_experience: int | None
) -> dict[str, int | None]:
    """The stream's length and the samples of an experience, with the defaults of its kind."""
    from avalanche_mgem.streams import parse_stream_name

    kind, source = parse_stream_name(stream)
    if kind == "domains":
        length = {} if experiences is None else {"n_experiences": experiences}
        return {**length, "train_per_experience": train_per_experience}
    if train_per_experience is None and source == "digits" and kind != "split":
        train_per_experience = 750
    if experiences is None:
        experiences = 5 if kind == "split" else 10
    return {"n_experiences": experiences, "train_per_experience": train_per_experience}


def _task_labels(stream: str, model: str, heads: str, asked: bool) -> bool:
    """Whether experiences have task labels; refuses what would train to no purpose."""
    if asked and heads != "multi" and ":" not in model and stream.startswith("split"):
        raise ValueError(
            f"task_labels: with heads={heads!r} all tasks of a split stream would share one head's "
            "outputs, because each numbers its classes from 0; use --heads multi"
        )
    return asked or heads == "multi"


def _widths(hidden: str | None) -> list[int] | None:
    if hidden is None:
        return None
    try:
        return [int(width) for width in hidden.split(",")]
    except ValueError:
        raise ValueError(f"hidden must be widths such as 100,100, got {hidden!r}") from None


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


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
