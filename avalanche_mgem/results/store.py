"""A folder of finished runs: one JSON file each, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from avalanche_mgem.files import is_unfinished, lock, write_atomically
from avalanche_mgem.results.result import RunResult

_MARK = "avalanche-mgem.json"
_LOCK = ".lock"
_CHECKPOINTS = "checkpoints"
_FORMAT = 1


class ResultStore:
    """The results folder of a comparison.

    Args:
        folder: new, empty, or one that a comparison made. It is made by `create`.

    Raises:
        ValueError: the folder is something else, or of a later version of this package.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {self.folder} is a file; name a folder")
        if self._mark.exists():
            self._require_format()
        elif self.folder.exists() and any(map(self._is_foreign, self.folder.iterdir())):
            raise ValueError(
                f"out: {self.folder} holds something else than results of a comparison; "
                "name a new or empty folder"
            )

    @property
    def runs(self) -> Path:
        """Folder of the finished runs."""
        return self.folder / "runs"

    def create(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            ValueError: it cannot be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._mark.exists():  # first of all, so that the folder is known to be ours
                write_atomically(self._mark, json.dumps({"format": _FORMAT}).encode() + b"\n")
            self.runs.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: {self.folder} cannot be written: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other comparisons out of the folder; on Windows nothing does.

        Raises:
            ValueError: another comparison is at work in it.
        """
        with (self.folder / _LOCK).open("w") as file:
            if not _lock(file):
                raise ValueError(
                    f"out: another comparison is at work in {self.folder}; wait for it, or name "
                    "another folder"
                )
            yield

    def load(self, key: str) -> RunResult | None:
        """Return the finished run of this key, or None.

        Raises:
            ValueError: its file is damaged.
        """
        path = self.runs / f"{key}.json"
        if not path.exists():
            return None
        try:
            return RunResult.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"out: {path} is not a whole result of a run ({type(error).__name__}: {error}); "
                "move it away, and the run is done again"
            ) from error

    def save(self, key: str, result: RunResult) -> None:
        """Write a finished run; it is there whole, or not at all."""
        write_atomically(self.runs / f"{key}.json", result.to_json().encode() + b"\n")

    def tensorboard(self, key: str) -> Path:
        """Folder of the run's TensorBoard log."""
        return self.folder / "tensorboard" / key

    def metrics_csv(self, key: str) -> Path:
        """File of the run's scalar metrics."""
        return self.folder / "metrics" / f"{key}.csv"

    def checkpoint(self, key: str) -> Path:
        """File that a run resumes from after a stop."""
        return self.folder / _CHECKPOINTS / f"{key}.ckpt"

    def has_checkpoint(self, key: str) -> bool:
        """Whether there is a file that a run may resume from."""
        from avalanche_mgem.checkpoint.files import previous_of  # with torch

        path = self.checkpoint(key)
        return path.exists() or previous_of(path).exists()

    def clear_unfinished(self, key: str) -> None:
        """Remove the logs and the checkpoint of a run that was stopped before it finished."""
        shutil.rmtree(self.tensorboard(key), ignore_errors=True)
        self.metrics_csv(key).unlink(missing_ok=True)
        self.clear_checkpoint(key)

    def clear_checkpoint(self, key: str) -> None:
        """Remove the checkpoint of a run."""
        path = self.checkpoint(key)
        if not path.parent.is_dir():
            return
        from avalanche_mgem.checkpoint.files import remove_checkpoint  # with torch

        remove_checkpoint(path)

    def tidy(self) -> None:
        """Remove the folder of checkpoints, if it is empty; no run may be under way here."""
        with suppress(OSError):  # there is none, or runs that are not finished have theirs there
            (self.folder / _CHECKPOINTS).rmdir()

    @property
    def _mark(self) -> Path:
        return self.folder / _MARK

    def _is_foreign(self, path: Path) -> bool:
        return not is_unfinished(path, _MARK)

    def _require_format(self) -> None:
        try:
            found = json.loads(self._mark.read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"out: {self._mark} is damaged: {error}") from error
        if found != _FORMAT:
            raise ValueError(
                f"out: {self.folder} has results in format {found!r}, this version of "
                f"avalanche-mgem reads format {_FORMAT}; name another folder"
            )


def _lock(file: IO[str]) -> bool:
    try:
        return lock(file, wait=False)
    except OSError:
        return True  # a file system without locks
