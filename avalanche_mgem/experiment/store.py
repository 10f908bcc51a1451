"""A folder of finished runs: one JSON file each, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from avalanche_mgem.experiment.result import RunResult
from avalanche_mgem.files import write_atomically

_MARK = "avalanche-mgem.json"


class ResultStore:
    """The results folder of a comparison.

    Args:
        folder: new, empty, or one that a comparison made.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {self.folder} is a file; name a folder")
        mark = self.folder / _MARK
        if self.folder.exists() and any(self.folder.iterdir()) and not mark.exists():
            raise ValueError(
                f"out: {self.folder} holds something else than results of a comparison; "
                "name a new or empty folder"
            )
        self.runs.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            write_atomically(mark, json.dumps({"format": 1}).encode() + b"\n")

    @property
    def runs(self) -> Path:
        """Folder of the finished runs."""
        return self.folder / "runs"

    def load(self, key: str) -> RunResult | None:
        """Return the finished run of this key, or None."""
        path = self.runs / f"{key}.json"
        return RunResult.from_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def save(self, key: str, result: RunResult) -> None:
        """Write a finished run; it is there whole, or not at all."""
        write_atomically(self.runs / f"{key}.json", result.to_json().encode() + b"\n")

    def tensorboard(self, key: str) -> Path:
        """Folder of the run's TensorBoard log."""
        return self.folder / "tensorboard" / key

    def metrics_csv(self, key: str) -> Path:
        """File of the run's scalar metrics."""
        return self.folder / "metrics" / f"{key}.csv"

    def clear_unfinished(self, key: str) -> None:
        """Remove the logs of a run that was stopped before it finished."""
        shutil.rmtree(self.tensorboard(key), ignore_errors=True)
        self.metrics_csv(key).unlink(missing_ok=True)
