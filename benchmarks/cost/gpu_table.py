"""What has been measured on a GPU: a CSV file that grows by a row, and lines for the terminal."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import torch
from record import environment

_SIDES = ("ours", "baseline")
_ASKED = ("launches", "copies", "synchronisations", "reads", "peak_mib", "waits_in", "waits_at")
_COLUMNS = (
    "case",
    "what",
    "precision",
    "model",
    "tasks",
    "patterns",
    "parameter_groups",
    "memory_groups",
    "gamma",
    "baseline",
    "arguments",
    "value",
    "quartile_1",
    "quartile_3",
    "ours",
    "baseline_value",
    "unit",
    "pairs",
    "warm_up",
    "timed",
    *(f"{asked}_{side}" for asked in _ASKED for side in _SIDES),
    "violated",
    "gradient_difference",
    "parameter_difference",
    "at_least",
    "verdict",
    "error",
    "seconds",
)


def surroundings(device: torch.device) -> dict[str, str]:
    """Return the device, the versions and the settings that numbers hold for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, "cuda": str(torch.version.cuda), "tf32": "off", **environment()}


class Table:
    """The rows in a file, each written as soon as it is there; None: only in memory.

    Raises:
        ValueError: the file exists, and `overwrite` is false.
    """

    def __init__(self, path: Path | None, about: dict[str, str], overwrite: bool) -> None:
        self._path, self._about = path, about
        self.rows: list[dict[str, Any]] = []
        if path is None:
            return
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: use another --out, or --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_csv([*_COLUMNS, *about]), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more row."""
        self.rows.append(row)
        if self._path is None:
            return
        whole = {**row, **self._about}
        with self._path.open("ab") as file:
            # In one piece: a killed process leaves all of a row or an unfinished line.
            file.write(_csv([_cell(whole.get(c)) for c in [*_COLUMNS, *self._about]]).encode())
            file.flush()
            os.fsync(file.fileno())


def line(row: dict[str, Any]) -> str:
    """Return what the terminal shows of a row."""
    if row["error"]:
        return f"{row['case']} ({row['precision']}): {row['error']}"
    told = [
        f"{row['case']} ({row['precision']}): {row['value']:.3g}x "
        f"({row['quartile_1']:.3g}-{row['quartile_3']:.3g}) {row.get('verdict', '')}",
        _both(row, "{}", "ms", ("ours", "baseline_value")),
    ]
    for name, unit in (
        ("launches_{}", "launches"),
        ("synchronisations_{}", "synchronisations"),
        ("copies_{}", "copies"),
        ("reads_{}", "reads"),
        ("peak_mib_{}", "MiB"),
    ):
        told.append(_both(row, name, unit))
    causes = [
        f"    {side} waits {where} {row[f'waits_{where}_{side}']}"
        for side in _SIDES
        for where in ("in", "at")
        if row.get(f"waits_{where}_{side}")
    ]
    return "\n".join([", ".join(filter(None, told)), *causes])


def _both(
    row: dict[str, Any], name: str, unit: str, sides: tuple[str, str] = ("ours", "baseline")
) -> str:
    ours, baseline = (row.get(name.format(side)) for side in sides)
    return "" if ours is None or baseline is None else f"{ours:.4g} / {baseline:.4g} {unit}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv(cells: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
