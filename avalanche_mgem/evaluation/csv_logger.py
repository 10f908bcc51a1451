"""Every scalar metric in one CSV file; Avalanche's CSVLogger writes accuracy and loss only."""

from __future__ import annotations

import csv
from numbers import Real
from pathlib import Path

from avalanche.logging import BaseLogger

from avalanche_mgem.arguments import as_path


class ScalarCSVLogger(BaseLogger):
    """Write the columns metric, step, value: one line for each scalar that a metric emits.

    An existing file is continued, never overwritten.

    Args:
        path: of the file; its folder is made.

    Raises:
        ValueError: the path is a folder, or a file that is not such a log.
    """

    HEADER = ("metric", "step", "value")

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = as_path("path", path)
        if self.path.is_dir():
            raise ValueError(f"path must name a file, got the folder {self.path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or self.path.stat().st_size == 0:
            self._append(self.HEADER)
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            if tuple(next(csv.reader(file), ())) != self.HEADER:
                raise ValueError(f"path: {self.path} exists and is not a log of scalar metrics")

    def log_single_metric(self, name: str, value: object, x_plot: int) -> None:
        """Append one line; what is no number (a tensor, a figure) is left out."""
        if isinstance(value, Real):
            self._append((name, x_plot, repr(float(value))))

    def _append(self, row: tuple[object, ...]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
