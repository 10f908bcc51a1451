"""A run that was stopped resumes after its last finished experience."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avalanche.evaluation import PluginMetric

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

_LOG = logging.getLogger(__name__)


class RunRecord(PluginMetric):
    """What a run knows of its past besides its strategy; as a metric it is saved with that.

    Attributes:
        key: of the run.
        seconds: of training so far.
        log_sizes: bytes of each log file when the run was saved, by its path in its folder.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.reset()

    def reset(self) -> None:
        """Forget everything but the key."""
        self.seconds = 0.0
        self.log_sizes: dict[str, int] = {}

    def result(self) -> float:
        """Return the seconds of training."""
        return self.seconds

    def __str__(self) -> str:
        return "RunRecord"


class RunCheckpoints:
    """The checkpoint of one run, replaced after each experience.

    Samples of the stream are not in it. Log files are cut to what they were when the run was saved,
    so that they have each line once.

    Args:
        path: of the file; None: nothing is saved or loaded.
        run_of: the run's name in messages.
        logs: the run's log files and folders of such.
    """

    def __init__(self, path: Path | None, run_of: str, logs: Sequence[Path] = ()) -> None:
        self._path = path
        self._run_of = run_of
        self._logs = logs
        self._earlier = _log_files(logs)  # those of processes before this one

    def resume(self, strategy: Strategy, scenario: Any, record: RunRecord) -> int:
        """Bring a new strategy to where the run was saved; return the index of the next experience.

        Raises:
            CheckpointError: the file is damaged, of another run, or does not load. The strategy may
                have been changed; the run must start over with a new one.
        """
        if self._path is None or not self._path.parent.exists():
            return 0
        key = record.key
        try:
            with self._warnings_logged():
                _, start = load_checkpoint(strategy, self._path, benchmark=scenario)
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read: {error}") from error
        if record.key != key:
            raise CheckpointError(f"{self._path} is of another run: {record.key}")
        if start:
            self._cut_logs(record)
            _LOG.info("%s: resumes at experience %d", self._run_of, start)
        return start

    def save(self, strategy: Strategy, scenario: Any, record: RunRecord) -> None:
        """Save the run; where that cannot be done, say so once and train on."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            record.log_sizes = self._flushed_sizes(strategy)
            with self._warnings_logged():
                save_checkpoint(strategy, self._path, benchmark=scenario)
        except (CheckpointError, OSError) as error:
            self._path = None
            _LOG.warning(
                "%s: no checkpoint can be saved, so that it starts over when it is stopped: %s",
                self._run_of,
                error,
            )

    @contextmanager
    def _warnings_logged(self) -> Iterator[None]:
        """Log what checkpoints warn of, with the run's name: of several runs one would not know."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            yield
        for warning in told:
            _LOG.warning("%s: %s", self._run_of, warning.message)

    def _flushed_sizes(self, strategy: Any) -> dict[str, int]:
        for logger in strategy.evaluator.loggers:
            if (writer := getattr(logger, "writer", None)) is not None:
                writer.flush()
        return {name: path.stat().st_size for name, path in _log_files(self._logs).items()}

    def _cut_logs(self, record: RunRecord) -> None:
        for name, path in self._earlier.items():
            if (size := record.log_sizes.get(name)) is None:
                path.unlink(missing_ok=True)
            elif size < path.stat().st_size:
                os.truncate(path, size)


def _log_files(logs: Sequence[Path]) -> dict[str, Path]:
    """Return the files by their paths from the folder of the log that they belong to."""
    found: dict[str, Path] = {}
    for log in logs:
        files = [log] if log.is_file() else [f for f in log.rglob("*") if f.is_file()]
        found |= {path.relative_to(log.parent).as_posix(): path for path in files}
    return found
