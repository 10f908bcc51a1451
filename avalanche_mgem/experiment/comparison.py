"""Train several methods on the same stream with several seeds, and show how they compare."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from avalanche_mgem.arguments import flag, positive_int
from avalanche_mgem.experiment.configuration import NamedStream, RunSpecification, Training
from avalanche_mgem.experiment.early import check_early
from avalanche_mgem.experiment.fixed_stream import as_stream
from avalanche_mgem.experiment.models import MLPFactory, ModelFactory
from avalanche_mgem.experiment.workers import (
    Outcome,
    Report,
    WorkerDiedError,
    require_picklable,
    run_here,
    run_in_workers,
)
from avalanche_mgem.methods.method import Method
from avalanche_mgem.methods.registry import DEFAULT_METHODS, select_methods
from avalanche_mgem.report.markdown import results_table
from avalanche_mgem.results.csv import write_accuracy_csv, write_csv
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.store import ResultStore
from avalanche_mgem.results.summary import on_validation

_LOG = logging.getLogger(__name__)

Runs = Callable[[Mapping[str, RunSpecification], Report], Generator[Outcome, None, None]]

DEFAULT_STREAM = NamedStream("permuted-digits", {"n_experiences": 10, "train_per_experience": 750})


class RunsFailedError(RuntimeError):
    """Some runs of a comparison failed; the others are finished and on disk."""


def compare(
    methods: str | Method | Iterable[str | Method] = DEFAULT_METHODS,
    *,
    stream: Any = DEFAULT_STREAM,
    seeds: int | Sequence[int] = 3,
    model: ModelFactory | None = None,
    training: Training | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path = "mgem-compare",
    jobs: int = 1,
    checkpoints: bool = True,
    console: Console | None = None,
) -> list[RunResult]:
    """Compare methods and leave a table, plots and logs in `out`.

    Every finished run is a file of its own, which no later call touches; the same call continues
    where it was stopped, a run after its last finished experience, and a changed setting makes a
    new run. Files in `out`: runs/ (JSON), checkpoints/ of runs that are not finished,
    tensorboard/ and metrics/ (CSV) of all comparisons made there; results.csv (a line a run),
    accuracy.csv (every entry of R), accuracy.png and tradeoff.png of the last one.

    Args:
        methods: names in METHODS, several of them with "+" between ("replay+migu"), or methods of
            your own; one or several. Default: DEFAULT_METHODS, which need no more than one pass
            over the data; on text, take TEXT_METHODS.
        stream: called with a seed, returns an Avalanche scenario with a train and a test stream of
            as many experiences; `NamedStream` makes one of ours by name, `TextStream` one of text.
            Or such a scenario that is at hand, of Avalanche's or of `scenario_from_datasets`: it is
            the same for all seeds, and known by its samples, see `FixedStream`. A function is known
            by its source text and what it holds; data that it reads elsewhere is not looked at.
        seeds: how many (0, 1, ...), or which. A seed decides the stream, the model and the
            training, so all methods see the same stream.
        model: called with a sample's shape and the number of classes, returns a model; default: a
            perceptron with two hidden layers of 100; `TextModelFactory` is for text.
        training: how every method trains.
        settings: changes to the methods' settings, {method: {setting: value}}.
        out: results folder: a new or empty one, or one of an earlier comparison.
        jobs: worker processes; 1 runs in this process. With more, methods, stream and model must be
            picklable, and a script needs an `if __name__ == "__main__":` guard.
        checkpoints: save each run after each experience, so that it resumes there, to the bit on a
            CPU; removed when the run is finished. A run that cannot be saved is named, and starts
            over. False: nothing is saved, and stopped runs start over.
        console: where progress and the table go; default: the terminal.

    Returns:
        The results, in the order of methods and seeds.

    Raises:
        ValueError: an argument is wrong; nothing has been trained.
        RunsFailedError: runs failed; the others are finished, written and shown.
    """
    positive_int("jobs", jobs)
    checkpoints = flag("checkpoints", checkpoints)
    chosen = select_methods(methods, settings or {})
    training, model = training or Training(), model or MLPFactory()
    stream = as_stream(stream)
    specifications = [
        RunSpecification(method, stream, seed, model, training)
        for method in chosen
        for seed in _seed_list(seeds)
    ]
    store = ResultStore(out)
    keyed = {specification.key: specification for specification in specifications}
    finished = _finished(store, keyed)
    todo = {key: specification for key, specification in keyed.items() if key not in finished}
    for key in keyed:
        _LOG.info("%s is %s", key, "finished" if key in finished else "to be run")
    if jobs > 1:
        require_picklable(list(todo.values()))
    check_early(list(todo.values()))
    # What is wrong has been told by now, if it can be told without waiting for Avalanche.
    from avalanche_mgem.experiment.checks import check_runs

    _LOG.info("the stream and each method's strategy are made once, to see that they can be")
    check_runs(list(todo.values()))
    store.create()
    with store.locked():
        finished |= _finished(store, todo)  # by a comparison that was at work here until now
        for key in finished:  # of a process that was killed between the two
            store.clear_checkpoint(key)
        runs = partial(_outcomes, store=store, jobs=jobs, checkpoints=checkpoints)
        try:
            return _run_and_present(keyed, finished, store, runs, console or Console())
        finally:
            store.tidy()


def _finished(store: ResultStore, keys: Iterable[str]) -> dict[str, RunResult]:
    return {key: result for key in keys if (result := store.load(key)) is not None}


def _seed_list(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must name at least one seed and none twice, got {seeds!r}")
        return [positive_int("seeds", seed, minimum=0) for seed in seeds]
    return list(range(positive_int("seeds", seeds)))


def _run_and_present(
    keyed: Mapping[str, RunSpecification],
    finished: dict[str, RunResult],
    store: ResultStore,
    runs: Runs,
    console: Console,
) -> list[RunResult]:
    """Do the runs that are not `finished`, to which they are added; show them all."""
    if finished:
        console.print(f"{len(finished)} of {len(keyed)} runs are finished already.")
    failures: dict[str, BaseException] = {}
    died: WorkerDiedError | None = None
    try:
        failures = _finish(keyed, finished, runs, console)
    except WorkerDiedError as error:
        died = error
    results = [finished[key] for key in keyed if key in finished]
    if results:
        _present(results, store, console)
    if died is not None:
        left = len(keyed) - len(finished)
        raise RunsFailedError(f"{left} of {len(keyed)} runs are not finished: {died}") from died
    if failures:
        raise RunsFailedError(_failure_text(failures)) from next(iter(failures.values()))
    return results


def _finish(
    keyed: Mapping[str, RunSpecification],
    finished: dict[str, RunResult],
    runs: Runs,
    console: Console,
) -> dict[str, BaseException]:
    todo = {key: specification for key, specification in keyed.items() if key not in finished}
    failures: dict[str, BaseException] = {}
    with _progress(console) as progress:
        task = progress.add_task("training", total=len(keyed), completed=len(finished))
        under_way: dict[str, float] = {}

        def report(key: str, done: float) -> None:
            if key not in finished and key not in failures:  # a report may come after the result
                under_way[key] = done
            progress.update(task, completed=len(finished) + sum(under_way.values()))

        with closing(runs(todo, report)) as outcomes:
            for key, outcome in outcomes:
                under_way.pop(key, None)
                if isinstance(outcome, RunResult):
                    finished[key] = outcome
                else:
                    failures[key] = outcome
                progress.update(task, completed=len(finished) + sum(under_way.values()))
                progress.console.print(_outcome_line(keyed[key], outcome), highlight=False)
    return failures


def _outcomes(
    todo: Mapping[str, RunSpecification],
    report: Report,
    *,
    store: ResultStore,
    jobs: int,
    checkpoints: bool,
) -> Generator[Outcome, None, None]:
    if jobs == 1 or len(todo) <= 1:
        return run_here(todo, store, report, checkpoints=checkpoints)
    jobs = min(jobs, len(todo))
    return run_in_workers(todo, store, report, jobs, checkpoints=checkpoints)


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
        if outcome.diverged is not None:
            return escape(f"{name} diverged in experience {outcome.diverged} (counted from 0)")
        acc, bwt = outcome.scores["acc"], outcome.scores["bwt"]
        return escape(f"{name}: ACC {acc:.3f}" + ("" if math.isnan(bwt) else f", BWT {bwt:+.3f}"))
    return escape(f"{name} failed: {type(outcome).__name__}: {outcome}")


def _present(results: list[RunResult], store: ResultStore, console: Console) -> None:
    from avalanche_mgem.report.figures.accuracy import plot_accuracy, plot_tradeoff

    write_csv(results, store.folder / "results.csv")
    write_accuracy_csv(results, store.folder / "accuracy.csv")
    plot_accuracy(results, store.folder / "accuracy.png")
    plot_tradeoff(results, store.folder / "tradeoff.png")
    for each in filter(None, (results, on_validation(results))):
        console.print(results_table(each, console.width))
    for line in (
        f"Table, plots and runs: {store.folder}",
        f"Watch: tensorboard --logdir {store.folder / 'tensorboard'}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _failure_text(failures: Mapping[str, BaseException]) -> str:
    lines = [f"{key}: {type(error).__name__}: {error}" for key, error in failures.items()]
    return "\n".join([f"{len(failures)} runs failed:", *lines])
