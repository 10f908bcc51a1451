"""The command avalanche-mgem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
        typer.Option(
            help="KIND-DATA: permuted, rotated, split or correlated; digits, mnist, fashion-mnist, "
            "cifar10, cifar100, a FILE.npz or a FOLDER/ of images. With +noise:3, +blur, +contrast "
            "the images are spoilt. Or domains-digit-five, domains:A.npz,B.npz. Or text."
        ),
    ] = "permuted-digits",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names, with commas between; default: eleven of --list; "
            "with + between, a combination: replay+migu."
        ),
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
    classes_per_experience: Annotated[
        int | None, typer.Option(help="Of correlated streams; default: the most that fit.")
    ] = None,
    shared_classes: Annotated[
        float | None,
        typer.Option(help="Of correlated streams: share of the classes, 0 to 1; default: 0.5."),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Of text: 1 to 6, MIGU's orders of tasks; default: 1.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Of text, instead of --order: names, such as agnews,yelp.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Of text: tokens of a text; default: 128.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="Of text: classification, or text-to-text or causal: answers in words."),
    ] = None,
    shared_labels: Annotated[
        bool, typer.Option(help="Of text: tasks share the label words that they have in common.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="mlp, slim-resnet18, cnn5, or your own package.module:factory; default: mlp. "
            "Of text: a name on the hub or a folder."
        ),
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Widths of the mlp's hidden layers; default: 100,100.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="single; growing, as classes come; multi, one a task (task-incremental). "
            "Default: single, text: multi."
        ),
    ] = None,
    task_labels: Annotated[
        bool, typer.Option(help="A task label an experience; --heads multi implies it.")
    ] = False,
    memory: Annotated[int, typer.Option(help="Patterns kept of each experience.")] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over each experience.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(help="Training minibatch; default: 10, text: 16.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adam or adamw; default: sgd, text: adamw.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the optimiser; default: 0.1, text: 0.0001.")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.0,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of the optimiser; default: 0, text: 0.01.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="METHOD.SETTING=VALUE, such as mgem-d.memory_groups=8."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; default: ./data, text: the hub.")
    ] = None,
    download: Annotated[bool, typer.Option(help="Download what is not there.")] = True,
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    jobs: Annotated[
        int | None,
        typer.Option(help="Worker processes; default: the cores; of text on an accelerator: 1."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("mgem-compare"),
) -> None:
    """Train methods on a stream and show how they compare; run again, it continues."""
    with _errors_told():
        # Imported here, because Avalanche takes seconds to import and --help should not.
        from avalanche_mgem.experiment.setup import Options

        from avalanche_mgem.experiment import (
            DEFAULT_METHODS,
            METHODS,
            TEXT_METHODS,
            load_methods,
            methods_table,
        )
        from avalanche_mgem.experiment import compare as run_comparison
        from avalanche_mgem.experiment.workers import available_cores
        from avalanche_mgem.methods.registry import parse_settings

        own = {} if methods_file is None else {m.name: m for m in load_methods(methods_file)}
        if list_methods:
            Console().print(methods_table({**METHODS, **own}.values()))
            return
        options = Options(
            stream=stream,
            experiences=experiences,
            train_per_experience=train_per_experience,
            test_per_experience=test_per_experience,
            class_order=class_order,
            domains=domains,
            image_size=image_size,
            classes_per_experience=classes_per_experience,
            shared_classes=shared_classes,
            order=order,
            tasks=_names(tasks),
            max_length=max_length,
            form=form,
            shared_labels=shared_labels,
            model=model,
            hidden=_widths(hidden),
            heads=heads,
            task_labels=task_labels,
            data_root=data_root,
            download=download,
        )
        made_stream, factory = options.stream_and_model()
        usual = TEXT_METHODS if options.is_text else DEFAULT_METHODS
        default_jobs = 1 if options.is_text and device != "cpu" else available_cores()
        names = _names(methods) or list(dict.fromkeys([*usual, *own]))
        run_comparison(
            [own.get(name, name) for name in names],
            stream=made_stream,
            seeds=seeds,
            training=options.training(
                optimizer=optimizer,
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                batch_size=batch_size,
                epochs=epochs,
                device=device,
                memory=memory,
            ),
            model=factory,
            settings=parse_settings(assignments or []),
            out=out,
            jobs=default_jobs if jobs is None else jobs,
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
        from avalanche_mgem.experiment import load_results
        from avalanche_mgem.report.folder import write_report
        from avalanche_mgem.report.markdown import results_table
        from avalanche_mgem.results.summary import by_stream

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


@app.command()
def theory(
    n: Annotated[int, typer.Option("--n", help="Training samples of each task.")] = 20,
    p: Annotated[int, typer.Option("--p", help="Shared parameters.")] = 100,
    p2: Annotated[int, typer.Option("--p2", help="Parameters of a task's own, > n + 1.")] = 60,
    shared_norm: Annotated[float, typer.Option(help="Norm of the shared parameters.")] = 0.5,
    specific_norm: Annotated[float, typer.Option(help="Norm of task 1's own parameters.")] = 3.0,
    distance: Annotated[float, typer.Option(help="Between the tasks' own parameters.")] = 1.0,
    noise: Annotated[float, typer.Option(help="Its standard deviation.")] = 0.1,
    cosine: Annotated[
        float, typer.Option(help="Of the angle between task 1's own parameters and the change.")
    ] = 0.0,
    runs: Annotated[int, typer.Option(help="Models trained for each simulated point.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("mgem-theory"),
) -> None:
    """Draw what two linear tasks forget as more or less is trained: closed form and simulation."""
    with _errors_told():
        from avalanche_mgem.report.figures.theory import draw_theory

        files = draw_theory(
            out,
            n=n,
            p=p,
            p2=p2,
            shared_norm=shared_norm,
            specific_norm=specific_norm,
            distance=distance,
            noise=noise,
            cosine=cosine,
            runs=runs,
            seed=seed,
        )
        for file in files:
            typer.echo(file)


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
