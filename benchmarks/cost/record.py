"""What has been measured: a CSV file that grows by a case at a time, and tables made from it."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_cases import Case, Target

import avalanche_mgem

CASE_COLUMNS = (
    "case",
    "what",
    "model",
    "tasks",
    "patterns",
    "parameter_groups",
    "memory_groups",
    "gamma",
    "baseline",
    "arguments",
)
MEASURED_COLUMNS = (
    "measure",
    "value",
    "quartile_1",
    "quartile_3",
    "ours",
    "baseline_value",
    "unit",
    "pairs",
    "gradient_difference",
    "parameter_difference",
    "parameter_difference_worst",
    "violated_rows",
    "violated_iterations",
    "figure",
    "at_least",
    "aim",
    "verdict",
)
_PACKAGES = ("avalanche-lib", "avalanche-mgem", "torch", "numpy", "quadprog", "qpsolvers")
# What a plugin's work is made of: its cost is that of this code.
_MEASURED_PARTS = ("bridge", "model", "plugins", "restriction")


def environment() -> dict[str, str]:
    """Return the versions, the machine and what tells the measured code from other code."""
    return {
        **{name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": _processor(),
        "threads": str(torch.get_num_threads()),
        "code": _code(),
    }


def rows_of(case: Case, measured: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows of a finished case as text, by column."""
    further = " ".join(f"{key}={value}" for key, value in case.arguments)
    about = {
        "case": case.name,
        **{name: getattr(case, name) for name in CASE_COLUMNS[1:-1]},
        "arguments": further,
    }
    rows = []
    for values in measured:
        target = _target(case, values)
        row = {**about, **values, **_held_against(case, target, values), **environment()}
        rows.append({column: _cell(row.get(column, "")) for column in columns()})
    return rows


def columns() -> list[str]:
    """Return the columns of the CSV file."""
    return [*CASE_COLUMNS, *MEASURED_COLUMNS, *environment()]


class Results:
    """The rows of finished cases in a file; None: only in memory.

    A case's rows are written as soon as it is finished. What a process that was killed left of an
    unfinished line is cut off.

    Raises:
        ValueError: the file holds something else, or results of other code or another machine.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: list[dict[str, str]] = []
        if path is not None and path.exists():
            self.rows = _read(path)

    def __contains__(self, case: Case) -> bool:
        return any(row["case"] == case.name for row in self.rows)

    def add(self, rows: list[dict[str, str]]) -> None:
        """Keep the rows of one more case."""
        self.rows += rows
        if self._path is None:
            return
        is_new = not self._path.exists() or self._path.stat().st_size == 0
        lines = [columns()] * is_new + [list(row.values()) for row in rows]
        with self._path.open("ab") as file:
            # In one piece: a killed process leaves all of a case or an unfinished line.
            file.write("".join(map(_line, lines)).encode())
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rows = list(csv.DictReader(io.StringIO(whole.decode())))
    first = whole.split(b"\n", 1)[0].decode()
    if whole and first.split(",") != columns():
        raise ValueError(
            f"{path} is no file of this command, or of an older one: use another --out"
        )
    other = sorted({k for row in rows for k, v in environment().items() if row[k] != v})
    if other:
        raise ValueError(
            f"{path} holds results that differ in {', '.join(other)}: use another --out, or "
            "--overwrite to measure anew"
        )
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return rows


def _target(case: Case, values: Mapping[str, Any]) -> Target | None:
    if values["measure"] == "projection share":
        return case.share
    return None if values["measure"].startswith("baseline") else case.target


def _held_against(
    case: Case, target: Target | None, values: Mapping[str, Any]
) -> dict[str, float | str]:
    if target is None:
        return {}
    value = values["ours"] if case.what == "solver" else values["value"]
    aim = math.nan if target.aim is None else target.aim
    return {
        "figure": case.figure,
        "at_least": target.at_least,
        "aim": aim,
        "verdict": target.verdict(value),
    }


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _line(cells: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _code() -> str:
    digest = hashlib.sha256()
    package = Path(avalanche_mgem.__file__).parent
    for part in _MEASURED_PARTS:
        for path in sorted((package / part).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
