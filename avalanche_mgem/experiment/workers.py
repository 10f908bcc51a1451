"""Runs spread over long-lived worker processes, each of which imports Avalanche once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
            yield key, run_and_save(key, specification, store.folder, report, checkpoints)
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

    The workers end with the last run, with an exception in the caller, and with this process,
    however it ends. What they log is logged in this process.

    Raises:
        WorkerDiedError: a worker ended before its run did.
    """
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    threads = max(1, available_cores() // jobs)
    level = _package_log().getEffectiveLevel()
    _LOG.info("%d runs in %d worker processes, %d threads each", len(specifications), jobs, threads)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (reports, threads, level))
    with _stopped_on_error(pool):
        with _interrupts_held_back():  # by the children, too, while they start
            futures = {
                pool.submit(_run_in_worker, key, specification, store.folder, checkpoints): key
                for key, specification in specifications.items()
            }
        pending: set[Future[RunResult]] = set(futures)
        while pending:
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            _pass_on(reports, report)
            for future in done:
                yield futures[future], _outcome(future)
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


def _outcome(future: Future[RunResult]) -> RunResult | BaseException:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise WorkerDiedError from error
    return error or future.result()


def run_and_save(
    key: str, specification: RunSpecification, folder: Path, report: Report, checkpoints: bool
) -> RunResult:
    """Do a run, or what is left of it, and write its result into a results folder."""
    from avalanche_mgem.checkpoint import CheckpointError
    from avalanche_mgem.experiment.run import run

    store = ResultStore(folder)

    def attempt() -> RunResult:
        if not (checkpoints and store.has_checkpoint(key)):
            store.clear_unfinished(key)
        return run(
            specification,
            tensorboard=store.tensorboard(key),
            metrics_csv=store.metrics_csv(key),
            checkpoint=store.checkpoint(key) if checkpoints else None,
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
    key: str, specification: RunSpecification, folder: Path, checkpoints: bool
) -> RunResult:
    def report(name: str, done: float) -> None:
        _report_queue.put((name, done))

    return run_and_save(key, specification, folder, report, checkpoints)


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
