"""Runs spread over long-lived worker processes, each of which imports Avalanche once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.experiment.result import RunResult
from avalanche_mgem.experiment.run import run
from avalanche_mgem.experiment.store import ResultStore

Report = Callable[[str, float], None]  # key of a run and the share of it that is done
Outcome = tuple[str, RunResult | BaseException]

_POLL_SECONDS = 0.2
_report_queue: Any = None  # set in each worker process when it starts


def run_here(
    specifications: dict[str, RunSpecification], store: ResultStore, report: Report
) -> Iterator[Outcome]:
    """Run one after the other in this process; yield (key, result or exception)."""
    for key, specification in specifications.items():
        try:
            yield key, _run_and_save(key, specification, store.folder, report)
        except Exception as error:
            yield key, error


def run_in_workers(
    specifications: dict[str, RunSpecification], store: ResultStore, report: Report, jobs: int
) -> Iterator[Outcome]:
    """Run in `jobs` processes; yield (key, result or exception) as they finish.

    Raises:
        ValueError: a method, stream or model that cannot be sent to another process.
    """
    _require_picklable(specifications)
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (reports, threads))
    with _stopped_on_error(pool):
        futures = {
            pool.submit(_run_in_worker, key, specification, store.folder): key
            for key, specification in specifications.items()
        }
        pending: set[Future[RunResult]] = set(futures)
        while pending:
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            while not reports.empty():
                report(*reports.get())
            for future in done:
                yield futures[future], future.exception() or future.result()


def _run_and_save(
    key: str, specification: RunSpecification, folder: Path, report: Report
) -> RunResult:
    store = ResultStore(folder)
    store.clear_unfinished(key)
    result = run(
        specification,
        tensorboard=store.tensorboard(key),
        metrics_csv=store.metrics_csv(key),
        progress=lambda done: report(key, done),
    )
    store.save(key, result)
    return result


def _require_picklable(specifications: dict[str, RunSpecification]) -> None:
    for specification in specifications.values():
        for what in ("method", "stream", "model"):
            try:
                pickle.dumps(getattr(specification, what))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{what} of {specification.method.name!r} cannot be sent to a worker process "
                    f"({error}); define it at the top of a module, or pass jobs=1"
                ) from error


def _start_worker(reports: Any, threads: int) -> None:
    global _report_queue  # noqa: PLW0603  # the one thing that a worker process is told
    _report_queue = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent alone acts on it
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(key: str, specification: RunSpecification, folder: Path) -> RunResult:
    return _run_and_save(
        key, specification, folder, lambda name, done: _report_queue.put((name, done))
    )


@contextmanager
def _stopped_on_error(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Wait for the workers at the end; end them at once when the caller stops or is interrupted."""
    before: Sequence[Any] = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()
        raise
    pool.shutdown(wait=True)
