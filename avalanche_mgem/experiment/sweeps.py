"""Choose the settings of methods on held-out data, and score what was chosen once on the test data.

A sweep works on studies in its folder (`sweep_studies`), as any number of processes may; each trial
is trained with every seed. Then the Pareto front of each method is compared on the test data, with
seeds that chose nothing (`sweep_results`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from avalanche_mgem.arguments import flag, positive_int
from avalanche_mgem.experiment.comparison import DEFAULT_STREAM, RunsFailedError, compare
from avalanche_mgem.experiment.configuration import Training
from avalanche_mgem.experiment.early import check_early
from avalanche_mgem.experiment.fixed_stream import as_stream
from avalanche_mgem.experiment.models import MLPFactory, ModelFactory
from avalanche_mgem.experiment.sweep_plan import (
    SweepPlan,
    check_corners,
    objective_names,
    require_optuna,
    sweep_training,
    with_spaces,
)
from avalanche_mgem.experiment.workers import (
    Engine,
    Keeps,
    WorkerDiedError,
    in_this_process,
    in_workers,
    outcome_of,
    require_picklable,
)
from avalanche_mgem.methods.registry import select_methods
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.store import ResultStore

if TYPE_CHECKING:
    from optuna.trial import Trial

    from avalanche_mgem.experiment.sweep_results import Front
    from avalanche_mgem.experiment.sweep_studies import MethodStudy, SweepFolder

_PATIENCE_SECONDS = 1.0


def sweep(
    methods: str | Iterable[str],
    *,
    space: str | Path | Mapping[str, Any] | None = None,
    trials: int = 40,
    objective: str | Sequence[str] = ("la", "bwt"),
    sampler: str = "tpe",
    pruner: str | None = None,
    sampler_seed: int = 0,
    stream: Any = DEFAULT_STREAM,
    seeds: int = 3,
    model: ModelFactory | None = None,
    training: Training | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path = "mgem-sweep",
    jobs: int = 1,
    checkpoints: bool = True,
    console: Console | None = None,
) -> list[Front]:
    """Choose methods' settings on validation data; score what was chosen on the test data.

    Each method is a study of optuna's; a trial is trained with every seed, and its values are the
    means of the scores on the data that were held out. What is chosen is the Pareto front of two
    objectives, or the best trial of one; these settings are then trained on all training data with
    as many other seeds, and scored on the test data, once.

    Any number of processes, on any machines, may work in one folder at the same time. Stopped at
    any moment, the same call continues; a trial whose process was killed is run again, its finished
    seeds are kept, and none counts twice. More trials continue a sweep, anything else that changes
    makes new studies.

    Files in `out`: those of `compare` for the settings that were chosen; best.toml, these settings
    as methods for `load_methods` and `compare --methods-file`; trials.csv; fronts.csv, with the
    hypervolumes; fronts.png; sweep/, the journal of the studies and their runs.

    Args:
        methods: names in METHODS, or of combinations.
        space: a TOML file, see `load_spaces`, or {method: {setting: Range or Choices}}; None: each
            method's own.
        trials: of each method that has something to choose; others have one.
        objective: one or two of the scores acc, bwt, la, forgetting, aia, min_acc, wc_acc and
            acc_task_il.
        sampler: "tpe", "random", "nsga2", "gp" or "qmc", of optuna.
        pruner: "wilcoxon", with the seeds as instances, which can end a trial from the fourth seed
            on; "median", of the means so far; "none". None: "wilcoxon" where there is one
            objective. Pruned trials count and are not chosen.
        sampler_seed: of the sampler; with one process, the trials are the same each time.
        stream: as of `compare`.
        model: as of `compare`.
        training: as of `compare`; without validation in it, a tenth is held out.
        seeds: how many train each trial (0, 1, ...); as many others score what was chosen.
        settings: fixed settings, {method: {setting: value}}; they are not tried.
        out: results folder: a new or empty one, or one of an earlier sweep.
        jobs: worker processes; each does one run at a time.
        checkpoints: as of `compare`.
        console: where trials and fronts go; default: the terminal.

    Returns:
        The front of each method.

    Raises:
        ValueError: an argument is wrong, or optuna is not installed; nothing has been trained.
        RunsFailedError: all trials of a method failed, or runs on the test data did.
    """
    require_optuna()
    positive_int("jobs", jobs)
    objectives = objective_names(objective)
    plan = SweepPlan(
        methods=with_spaces(_named(methods, settings or {}), space, settings or {}),
        stream=as_stream(stream),
        model=model or MLPFactory(),
        training=sweep_training(training or Training()),
        seeds=tuple(range(positive_int("seeds", seeds))),
        objectives=objectives,
        trials=trials,
        sampler=sampler,
        pruner=pruner or ("wilcoxon" if len(objectives) == 1 else "none"),
        sampler_seed=sampler_seed,
    )
    if plan.training.eval_every is not None:
        raise ValueError(
            "training: eval_every evaluates test data within experiences, which no setting is "
            f"chosen by; leave it out of a sweep, got {plan.training.eval_every}"
        )
    keeps = Keeps(checkpoints=flag("checkpoints", checkpoints), logs=False, tests=False)
    store = ResultStore(out)
    _check(plan, jobs)
    store.create()
    return _sweep(_Sweep(plan, store, keeps, jobs, console or Console()))


def _named(
    methods: str | Iterable[str], settings: Mapping[str, Mapping[str, Any]]
) -> Sequence[Any]:
    names = [methods] if isinstance(methods, str) else list(methods)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("methods must be names; METHODS.register makes one of a method")
    for method, changes in settings.items():
        for name, value in changes.items():
            if not isinstance(value, str | int | float):
                raise ValueError(
                    f"settings: {method}.{name} must be a text, a number or a boolean, which a "
                    f"TOML file of methods can hold, got {value!r}"
                )
    return select_methods(names, settings)


def _check(plan: SweepPlan, jobs: int) -> None:
    runs = [plan.specification(method, 0) for method in plan.methods]
    if jobs > 1:
        require_picklable(runs)
    check_early(runs)
    check = getattr(plan.stream, "check", None)
    if check is not None:
        check_corners(plan, check())
    from avalanche_mgem.experiment.checks import check_runs

    check_runs(runs)
    if check is None:
        check_corners(plan, len(runs[0].scenario().train_stream))


@dataclass
class _Sweep:
    """A sweep at work.

    Attributes:
        under_way: the trials that this process works on, by the future of a seed's run; several
            where their settings are equal.
        runs: the keys of those runs.
    """

    plan: SweepPlan
    store: ResultStore
    keeps: Keeps
    jobs: int
    console: Console
    under_way: dict[Future[RunResult], list[_Trial]] = field(default_factory=dict)
    runs: dict[str, Future[RunResult]] = field(default_factory=dict)

    def work(self, studies: Sequence[MethodStudy], engine: Engine) -> None:
        """Do trials, of the first study that has some left, until none has."""
        left = list(studies)
        while left or self.under_way:
            while left and sum(map(len, self.under_way.values())) < self.jobs:
                if (asked := left[0].ask()) is None:
                    del left[0]
                    continue
                self._start(_Trial(left[0], asked), engine)
            for future in engine.wait(self.under_way) if self.under_way else ():
                self.runs = {key: other for key, other in self.runs.items() if other != future}
                for trial in self.under_way.pop(future):
                    self._go_on(trial, outcome_of(future), engine)

    def _start(self, trial: _Trial, engine: Engine) -> None:
        """Start the next seed of a trial, if its result is not there."""
        from avalanche_mgem.experiment.sweep_studies import with_params

        method = with_params(trial.study.method, trial.asked.params)
        run = self.plan.specification(method, self.plan.seeds[len(trial.scores)])
        runs = ResultStore(self.store.folder / "sweep" / "trials")
        runs.create()
        if (finished := runs.load(run.key)) is not None:
            self._go_on(trial, finished, engine)
        elif run.key in self.runs:
            self.under_way[self.runs[run.key]].append(trial)
        else:
            future = engine.submit(run.key, run, runs.folder, self.keeps)
            self.runs[run.key], self.under_way[future] = future, [trial]

    def _go_on(self, trial: _Trial, outcome: RunResult | BaseException, engine: Engine) -> None:
        """Note what a seed has given: the trial goes on, or is finished."""
        study, asked = trial.study, trial.asked
        if isinstance(outcome, BaseException):
            study.failed(asked, outcome)
            self._tell(trial, f"failed: {type(outcome).__name__}: {outcome}")
            return
        held_out = outcome.on_validation
        missing = self._not_measured(held_out)
        if missing and outcome.diverged is None:
            self._go_on(trial, ValueError(f"objective: {missing} was not measured"), engine)
            return
        if outcome.diverged is not None or held_out is None:
            study.diverged(asked)
            self._tell(trial, f"diverged with seed {outcome.seed}")
            return
        trial.scores.append(held_out.scores)
        if study.pruned(asked, trial.scores):
            self._tell(trial, f"pruned after {len(trial.scores)} seeds")
        elif len(trial.scores) < len(self.plan.seeds):
            self._start(trial, engine)
        else:
            means = study.complete(asked, trial.scores)
            names = zip(self.plan.objectives, means, strict=True)
            self._tell(trial, ", ".join(f"{name.upper()} {mean:.3f}" for name, mean in names))

    def _not_measured(self, held_out: RunResult | None) -> str:
        scores = {} if held_out is None else held_out.scores
        names = self.plan.objectives
        return ", ".join(name for name in names if math.isnan(scores.get(name, math.nan)))

    def _tell(self, trial: _Trial, what: str) -> None:
        settings = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.asked.params.items()
        )
        name = f"{trial.study.method.name}, trial {trial.asked.number}"
        line = f"{name}: {what}" + (f" ({settings})" if settings else "")
        self.console.print(escape(line), highlight=False, soft_wrap=True)


@dataclass
class _Trial:
    """A trial, and the scores of the seeds that are finished."""

    study: MethodStudy
    asked: Trial
    scores: list[dict[str, float]] = field(default_factory=list)


def _sweep(at_work: _Sweep) -> list[Front]:
    from avalanche_mgem.experiment.sweep_studies import MethodStudy, SweepFolder

    folder = SweepFolder(at_work.store.folder / "sweep")
    plan, jobs = at_work.plan, at_work.jobs
    with folder.at_work():
        studies = [MethodStudy(folder, plan, method) for method in plan.methods]
        try:
            with in_this_process(_ignore) if jobs == 1 else in_workers(jobs, _ignore) as engine:
                at_work.work(studies, engine)
                while not all(study.is_finished() for study in studies):
                    # Others are at work; if they are killed, what they leave is done here.
                    time.sleep(_PATIENCE_SECONDS)
                    at_work.work(studies, engine)
        except WorkerDiedError as error:
            raise RunsFailedError(f"the sweep is not finished: {error}") from error
        return _finished(at_work, folder, studies)


def _finished(at_work: _Sweep, folder: SweepFolder, studies: Sequence[MethodStudy]) -> list[Front]:
    """Score what was chosen on the test data, and write what the sweep has found."""
    from avalanche_mgem.experiment.sweep_results import (
        chosen_fronts,
        present,
        with_tests,
        write_choice,
    )

    plan, console = at_work.plan, at_work.console
    fronts = chosen_fronts(plan, studies)
    write_choice(fronts, plan, studies, at_work.store.folder)
    seeds = [len(plan.seeds) + seed for seed in plan.seeds]
    with folder.locked("testing"):  # several processes may come to the end
        results = compare(
            [method for front in fronts for method in front.methods],
            stream=plan.stream,
            seeds=seeds,
            model=plan.model,
            training=replace(plan.training, validation=0.0),
            out=at_work.store.folder,
            jobs=at_work.jobs,
            checkpoints=at_work.keeps.checkpoints,
            console=console,
        )
        fronts = with_tests(fronts, results, plan)
        present(fronts, plan, studies, at_work.store.folder, console)
    return fronts


def _ignore(key: str, done: float) -> None:
    """A trial's runs report nothing."""
