"""Train several methods on the same stream with several seeds, and show how they compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.experiment.configuration import NamedStream, RunSpecification, Training
from avalanche_mgem.experiment.csv_files import write_accuracy_csv, write_csv
from avalanche_mgem.experiment.models import MLPFactory, ModelFactory
from avalanche_mgem.experiment.plots import plot_accuracy, plot_tradeoff
from avalanche_mgem.experiment.registry import METHODS, Method, select_methods
from avalanche_mgem.experiment.report import results_table
from avalanche_mgem.experiment.result import RunResult
from avalanche_mgem.experiment.store import ResultStore
from avalanche_mgem.experiment.workers import Outcome, run_here, run_in_workers

DEFAULT_STREAM = NamedStream("permuted-digits", {"n_experiences": 10, "train_per_experience": 500})


class RunsFailedError(RuntimeError):
    """Some runs of a comparison failed; the others are finished and on disk."""


def compare(
    methods: Iterable[str | Method] = tuple(METHODS),
    *,
    stream: Callable[[int], Any] = DEFAULT_STREAM,
    seeds: int | Sequence[int] = 3,
    model: ModelFactory | None = None,
    training: Training | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path = "mgem-compare",
    jobs: int = 1,
    console: Console | None = None,
) -> list[RunResult]:
    """Compare methods and leave a table, plots and logs in `out`.

    Every finished run is a file of its own; the same call continues where it was stopped, and a
    changed setting makes a new run. Files in `out`: results.csv (a line a run), accuracy.csv (every
    entry of R), accuracy.png, tradeoff.png, runs/ (JSON), tensorboard/ and metrics/ (CSV).

    Args:
        methods: names in METHODS, or methods of your own.
        stream: called with a seed, returns an Avalanche scenario with a train and a test stream of
            as many experiences; `NamedStream` makes one of ours by name.
        seeds: how many (0, 1, ...), or which. A seed decides the stream, the model and the
            training, so all methods see the same stream.
        model: called with a sample's shape and the number of classes, returns a model; default: a
            perceptron with two hidden layers of 100.
        training: how every method trains.
        settings: changes to the methods' settings, {method: {setting: value}}.
        out: results folder.
        jobs: worker processes; 1 runs in this process. With more, methods, stream and model must be
            picklable, and a script needs an `if __name__ == "__main__":` guard.
        console: where progress and the table go; default: the terminal.

    Returns:
        The results, in the order of methods and seeds.

    Raises:
        ValueError: an argument is wrong; nothing has been trained.
        RunsFailedError: runs failed; the others are finished, written and shown.
    """
    positive_int("jobs", jobs)
    chosen = select_methods(methods, settings or {})
    specifications = [
        RunSpecification(method, stream, seed, model or MLPFactory(), training or Training())
        for method in chosen
        for seed in _seed_list(seeds)
    ]
    store = ResultStore(out)
    _try_stream(specifications[0])
    console = console or Console()
    keyed = {specification.key: specification for specification in specifications}
    finished, failures = _finish(keyed, store, jobs, console)
    results = [finished[key] for key in keyed if key in finished]
    if results:
        _present(results, store, console)
    if failures:
        raise RunsFailedError(_failure_text(failures)) from next(iter(failures.values()))
    return results


def _seed_list(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must name at least one seed and none twice, got {seeds!r}")
        return [positive_int("seeds", seed, minimum=0) for seed in seeds]
    return list(range(positive_int("seeds", seeds)))


def _try_stream(specification: RunSpecification) -> None:
    """Make the stream once in this process, so that what is wrong with it is said here and now."""
    specification.stream(specification.seed)


def _finish(
    keyed: dict[str, RunSpecification], store: ResultStore, jobs: int, console: Console
) -> tuple[dict[str, RunResult], dict[str, BaseException]]:
    finished = {key: result for key in keyed if (result := store.load(key)) is not None}
    if finished:
        console.print(f"{len(finished)} of {len(keyed)} runs are finished already.")
    todo = {key: spec for key, spec in keyed.items() if key not in finished}
    failures: dict[str, BaseException] = {}
    with _progress(console) as progress:
        task = progress.add_task("training", total=len(keyed), completed=len(finished))
        under_way: dict[str, float] = {}

        def report(key: str, done: float) -> None:
            under_way[key] = done
            progress.update(task, completed=len(finished) + sum(under_way.values()))

        for key, outcome in _outcomes(todo, store, report, jobs):
            under_way.pop(key, None)
            if isinstance(outcome, RunResult):
                finished[key] = outcome
            else:
                failures[key] = outcome
            progress.update(task, completed=len(finished) + sum(under_way.values()))
            progress.console.print(_outcome_line(keyed[key], outcome), highlight=False)
    return finished, failures


def _outcomes(
    todo: dict[str, RunSpecification], store: ResultStore, report: Any, jobs: int
) -> Iterable[Outcome]:
    if jobs == 1 or len(todo) <= 1:
        return run_here(todo, store, report)
    return run_in_workers(todo, store, report, min(jobs, len(todo)))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _outcome_line(specification: RunSpecification, outcome: RunResult | BaseException) -> str:
    name = f"{specification.method.name}, seed {specification.seed}"
    if isinstance(outcome, RunResult):
        scores = outcome.scores
        return f"{name}: ACC {scores['acc']:.3f}, BWT {scores['bwt']:+.3f}"
    return escape(f"{name} failed: {type(outcome).__name__}: {outcome}")


def _present(results: list[RunResult], store: ResultStore, console: Console) -> None:
    write_csv(results, store.folder / "results.csv")
    write_accuracy_csv(results, store.folder / "accuracy.csv")
    plot_accuracy(results, store.folder / "accuracy.png")
    plot_tradeoff(results, store.folder / "tradeoff.png")
    console.print(results_table(results, console.width))
    console.print(f"Table, plots and runs: {store.folder}", highlight=False)
    console.print(f"Watch: tensorboard --logdir {store.folder / 'tensorboard'}", highlight=False)


def _failure_text(failures: Mapping[str, BaseException]) -> str:
    lines = [f"{key}: {type(error).__name__}: {error}" for key, error in failures.items()]
    return "\n".join([f"{len(failures)} runs failed:", *lines])
