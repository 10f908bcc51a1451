"""Runs spread over long-lived worker processes, each of which imports Avalanche once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.store import ResultStore

Report = Callable[[str, float], None]  # key of a run and the share of it that is done
Outcome = tuple[str, RunResult | BaseException]

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 3.0
_report_queue: Any = None  # set in each worker process when it starts


class WorkerDiedError(RuntimeError):
    """A worker process ended before its run did."""

    def __init__(self) -> None:
        super().__init__(
            "a worker process died: it was killed (too little memory for so many jobs?), or it "
            "could not import the script that started it (which needs an "
            '`if __name__ == "__main__":` guard); what is finished is kept, and the same call '
            "continues"
        )


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_here(
    specifications: Mapping[str, RunSpecification],
    store: ResultStore,
    report: Report,
    *,
    checkpoints: bool = True,
) -> Generator[Outcome, None, None]:
    """Run one after the other in this process; yield (key, result or exception).

    checkpoints: save each run after each experience, and resume those that are saved.
    """
    _LOG.info("%d runs in this process", len(specifications))
    for key, specification in specifications.items():
        try:
            keeps = Keeps(checkpoints=checkpoints)
            yield key, run_and_save(key, specification, store.folder, report, keeps)
        except Exception as error:
            yield key, error


def run_in_workers(
    specifications: Mapping[str, RunSpecification],
    store: ResultStore,
    report: Report,
    jobs: int,
    *,
    checkpoints: bool = True,
) -> Generator[Outcome, None, None]:
    """Run in `jobs` processes; yield (key, result or exception) as they finish.

    Raises:
        WorkerDiedError: a worker ended before its run did.
    """
    _LOG.info("%d runs in %d worker processes", len(specifications), jobs)
    with in_workers(jobs, report) as engine:
        futures = {
            engine.submit(key, specification, store.folder, Keeps(checkpoints=checkpoints)): key
            for key, specification in specifications.items()
        }
        pending = set(futures)
        while pending:
            done = engine.wait(pending)
            pending -= done
            for future in done:
                yield futures[future], outcome_of(future)


@dataclass(frozen=True)
class Keeps:
    """What a run leaves besides its result: checkpoints, logs, scores on the test data."""

    checkpoints: bool = True
    logs: bool = True
    tests: bool = True


Submit = Callable[[str, RunSpecification, Path, Keeps], "Future[RunResult]"]


@dataclass(frozen=True)
class Engine:
    """What does runs.

    Args:
        submit: called with a run's key, the run, its results folder and what it leaves, returns
            the future of its result.
        pass_on: reports and logs what the runs have told.
    """

    submit: Submit
    pass_on: Callable[[], None]

    def wait(self, pending: Iterable[Future[RunResult]]) -> set[Future[RunResult]]:
        """Wait a moment; return the runs that are finished."""
        done, _ = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        self.pass_on()
        return done


@contextmanager
def in_this_process(report: Report) -> Iterator[Engine]:
    """Do each run as it is submitted."""

    def submit(
        key: str, specification: RunSpecification, folder: Path, keeps: Keeps
    ) -> Future[RunResult]:
        future: Future[RunResult] = Future()
        try:
            future.set_result(run_and_save(key, specification, folder, report, keeps))
        except Exception as error:
            future.set_exception(error)
        return future

    yield Engine(submit, lambda: None)


@contextmanager
def in_workers(jobs: int, report: Report) -> Iterator[Engine]:
    """Do runs in `jobs` processes.

    The workers end with the block, with an exception in it, and with this process, however it
    ends. What they log is logged in this process.
    """
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    threads = max(1, available_cores() // jobs)
    level = _package_log().getEffectiveLevel()
    _LOG.info("%d worker processes, %d threads each", jobs, threads)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (reports, threads, level))

    def submit(
        key: str, specification: RunSpecification, folder: Path, keeps: Keeps
    ) -> Future[RunResult]:
        with _interrupts_held_back():  # by the children, too, while they start
            return pool.submit(_run_in_worker, key, specification, folder, keeps)

    with _stopped_on_error(pool):
        yield Engine(submit, lambda: _pass_on(reports, report))
    _pass_on(reports, report)


def _pass_on(reports: Any, report: Report) -> None:
    """Report and log what the workers have sent."""
    while not reports.empty():
        sent = reports.get()
        if isinstance(sent, logging.LogRecord):
            logging.getLogger(sent.name).handle(sent)
        else:
            report(*sent)


def _package_log() -> logging.Logger:
    return logging.getLogger("avalanche_mgem")


def require_picklable(specifications: Sequence[RunSpecification]) -> None:
    """Raise ValueError for a method, stream or model that cannot be sent to another process."""
    for specification in specifications:
        for what in ("method", "stream", "model"):
            try:
                pickle.dumps(getattr(specification, what))
            except Exception as error:  # a user's own __reduce__ may raise anything
                raise ValueError(
                    f"{what} of {specification.method.name!r} cannot be sent to a worker process "
                    f"({error}); define it at the top of a module, or pass jobs=1"
                ) from error


def outcome_of(future: Future[RunResult]) -> RunResult | BaseException:
    """Return a run's result, or what it failed with; raises WorkerDiedError."""
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise WorkerDiedError from error
    return error or future.result()


def run_and_save(
    key: str, specification: RunSpecification, folder: Path, report: Report, keeps: Keeps
) -> RunResult:
    """Do a run, or what is left of it, and write its result into a results folder."""
    from avalanche_mgem.checkpoint import CheckpointError
    from avalanche_mgem.experiment.run import run

    store = ResultStore(folder)

    def attempt() -> RunResult:
        if not (keeps.checkpoints and store.has_checkpoint(key)):
            store.clear_unfinished(key)
        return run(
            specification,
            tensorboard=store.tensorboard(key) if keeps.logs else None,
            metrics_csv=store.metrics_csv(key) if keeps.logs else None,
            checkpoint=store.checkpoint(key) if keeps.checkpoints else None,
            tests=keeps.tests,
            progress=lambda done: report(key, done),
        )

    try:
        result = attempt()
    except CheckpointError as error:
        _LOG.warning("%s starts over: %s", key, error)
        store.clear_unfinished(key)
        result = attempt()
    store.save(key, result)
    store.clear_checkpoint(key)
    return result


def _start_worker(reports: Any, threads: int, log_level: int) -> None:
    import torch

    global _report_queue  # noqa: PLW0603  # the one thing that a worker process is told
    _report_queue = reports
    _package_log().setLevel(log_level)
    _package_log().addHandler(QueueHandler(reports))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent alone acts on it
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(
    key: str, specification: RunSpecification, folder: Path, keeps: Keeps
) -> RunResult:
    def report(name: str, done: float) -> None:
        _report_queue.put((name, done))

    return run_and_save(key, specification, folder, report, keeps)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Deliver a Ctrl-C on the way out; processes started meanwhile never get one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stopped_on_error(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Wait for the workers at the end; end them at once when the caller stops or is interrupted."""
    before: Sequence[Any] = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _end([child for child in multiprocessing.active_children() if child not in before])
        raise
    pool.shutdown(wait=True)


def _end(children: Sequence[Any]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        child.join(_PATIENCE_SECONDS)
        if child.is_alive():
            child.kill()
