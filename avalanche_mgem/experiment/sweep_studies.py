"""Studies of optuna's in one folder, which any number of processes work on at the same time.

optuna's journal has no heartbeat: a trial of a process that was killed runs for ever. So each
process holds a lock on a file of its own, which the system lets go of when the process ends,
however it ends; a running trial whose process's lock is free is run again, as a new trial with the
same settings.
"""

from __future__ import annotations

import os
import sys
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from avalanche_mgem.experiment.sweep_plan import WORST, SweepPlan
from avalanche_mgem.files import lock
from avalanche_mgem.methods.method import Method
from avalanche_mgem.methods.space import Dimension, Range
from avalanche_mgem.results.file_names import file_name
from avalanche_mgem.results.summary import BEST

_WORKER, _AGAIN, _ERROR, _DIVERGED = "worker", "again", "error", "diverged"
_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


class SweepFolder:
    """The journal of the studies, and who is at work on them.

    The file system must have locks, as local disks and NFS from version 4 on do; on Windows, one
    process at a time.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._workers = folder / "workers"
        self._workers.mkdir(parents=True, exist_ok=True)
        journal = folder / "studies.journal"
        own: Any = _JournalLock(journal) if sys.platform != "win32" else None
        self.storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=own))
        self.worker = uuid.uuid4().hex

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the lock by which others see that this process lives; optuna logs warnings only."""
        path, level = self._workers / self.worker, optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with path.open("w") as file:
                lock(file, wait=True)
                yield
        finally:
            path.unlink(missing_ok=True)
            optuna.logging.set_verbosity(level)

    @contextmanager
    def locked(self, name: str = "asking") -> Iterator[None]:
        """Keep other processes out of the same block."""
        with (self.folder / f"{name}.lock").open("w") as file:
            lock(file, wait=True)
            yield

    def is_at_work(self, worker: str | None) -> bool:
        """Whether the process that a trial belongs to still lives."""
        if worker == self.worker:
            return True
        path = self._workers / str(worker)
        try:
            # For writing, because NFS locks no other files.
            with path.open("r+") as file:
                if not lock(file, wait=False):
                    return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False


class MethodStudy:
    """The trials of one method.

    Args:
        folder: of the sweep.
        plan: of the sweep. Another plan makes another study, but for the number of trials, the
            sampler and the pruner.
        method: one of the plan's.
    """

    def __init__(self, folder: SweepFolder, plan: SweepPlan, method: Method) -> None:
        self.method, self._plan, self._folder = method, plan, folder
        up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        directions = [up if BEST[name] is max else down for name in plan.objectives]
        with _quiet():
            self._study = optuna.create_study(
                storage=folder.storage,
                study_name=f"{file_name(method.name)}-{plan.digest(method)}",
                directions=directions,
                load_if_exists=True,
                pruner=_pruner(plan),
            )

    def ask(self) -> Trial | None:
        """Return the next trial; None: as many are finished or running as were asked for."""
        with self._folder.locked(), _quiet():
            trials = self.trials()
            self._take_over(trials)
            count = sum(map(self._counts, self.trials()))
            if count >= self._plan.budget(self.method):
                return None
            if not trials:
                self._study.enqueue_trial(self._own_settings())
            # By how many have counted, so that a sweep that was stopped draws as one that was not.
            self._study.sampler = _sampler(self._plan, count)
            space = self.method.space.items()
            trial = self._study.ask({name: _distribution(each) for name, each in space})
            trial.set_user_attr(_WORKER, self._folder.worker)
            return trial

    def is_finished(self) -> bool:
        """Whether all trials are finished, none runs, and none must be run again."""
        with self._folder.locked():
            trials = self.trials()
            self._take_over(trials)
            trials = self.trials()
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        return not running and sum(map(self._counts, trials)) >= self._plan.budget(self.method)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, in the order in which they began."""
        return self._study.get_trials(deepcopy=False)

    def complete(self, trial: Trial, scores: Sequence[dict[str, float]]) -> list[float]:
        """Note the means of the scores of all seeds; return them."""
        means = self._means(scores)
        self._study.tell(trial, means, skip_if_finished=True)
        return means

    def diverged(self, trial: Trial) -> None:
        """Note that a seed diverged: the worst values, so that the sampler keeps away."""
        trial.set_user_attr(_DIVERGED, True)
        worst = [WORST[name] for name in self._plan.objectives]
        self._study.tell(trial, worst, skip_if_finished=True)

    def pruned(self, trial: Trial, scores: Sequence[dict[str, float]]) -> bool:
        """Tell the pruner of one more seed; return whether it ends the trial."""
        if self._plan.pruner == "none":
            return False
        (name,) = self._plan.objectives
        value = scores[-1][name] if self._plan.pruner == "wilcoxon" else self._means(scores)[0]
        trial.report(value, len(scores) - 1)
        with _quiet():
            prunes = trial.should_prune()
        if prunes:
            self._study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        return prunes

    def failed(self, trial: Trial, error: BaseException) -> None:
        """Note that a run failed; the trial counts, and is not run again."""
        trial.set_user_attr(_ERROR, f"{type(error).__name__}: {error}")
        self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _means(self, scores: Sequence[dict[str, float]]) -> list[float]:
        return [float(np.mean([one[name] for one in scores])) for name in self._plan.objectives]

    def _counts(self, trial: FrozenTrial) -> bool:
        return trial.state in _COUNTED or _ERROR in trial.user_attrs

    def _take_over(self, trials: Sequence[FrozenTrial]) -> None:
        """Ask again for the trials of processes that have ended."""
        again = {trial.user_attrs.get(_AGAIN) for trial in trials}
        for trial in trials:
            running = trial.state == TrialState.RUNNING
            if not running or self._folder.is_at_work(trial.user_attrs.get(_WORKER)):
                continue
            if trial.number not in again:  # else this was killed between the two
                # What it was asked for, where it was killed before it had heard all of it.
                asked = trial.system_attrs.get("fixed_params", {})
                self._study.enqueue_trial({**asked, **trial.params}, {_AGAIN: trial.number})
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _own_settings(self) -> dict[str, Any]:
        """What the method has anyway, which is tried first."""
        own, space = self.method.settings, self.method.space
        return {k: own[k] for k, dimension in space.items() if k in own and dimension.holds(own[k])}


def diverged(trial: FrozenTrial) -> bool:
    """Whether a seed of a trial diverged."""
    return _DIVERGED in trial.user_attrs


def error_of(trial: FrozenTrial) -> str | None:
    """Return what a trial failed with."""
    found = trial.user_attrs.get(_ERROR)
    return None if found is None else str(found)


def with_params(method: Method, params: dict[str, Any], name: str | None = None) -> Method:
    """Return the method with a trial's settings."""
    return replace(method, name=name or method.name, settings={**method.settings, **params})


class _JournalLock:
    """A lock that ends with its process; optuna's own stays, and makes others wait.

    A process that is killed may leave half a line, to which the next would write its own: it is cut
    off, and with it what that process had not finished to say.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock, and cut off half a line."""
        self._file = self._journal.with_suffix(".lock").open("w")
        lock(self._file, wait=True)
        with self._journal.open("rb+") as journal:
            content_end = journal.seek(0, os.SEEK_END)
            while content_end and not _ends_a_line(journal, content_end):
                content_end -= 1
            journal.truncate(content_end)
        return True

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _ends_a_line(file: IO[bytes], position: int) -> bool:
    file.seek(position - 1)
    return file.read(1) == b"\n"


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension.values)
    if dimension.of_integers:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _sampler(plan: SweepPlan, count: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence([plan.sampler_seed, count]).generate_state(1)[0])
    samplers = optuna.samplers
    if plan.sampler == "tpe":
        return samplers.TPESampler(seed=seed)
    if plan.sampler == "random":
        return samplers.RandomSampler(seed)
    if plan.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed)
    if plan.sampler == "gp":
        return samplers.GPSampler(seed=seed)
    # One sequence, of which each trial is the next.
    return samplers.QMCSampler(scramble=True, seed=plan.sampler_seed)


def _pruner(plan: SweepPlan) -> optuna.pruners.BasePruner:
    if plan.pruner == "wilcoxon":
        return optuna.pruners.WilcoxonPruner()
    return optuna.pruners.MedianPruner() if plan.pruner == "median" else optuna.pruners.NopPruner()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what optuna says of features that may change; their use here is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
