"""CSV files of finished runs, for others to read: the package reads runs/, see results.store."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avalanche_mgem.files import write_atomically
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.summary import FURTHER, HEADINGS, require_runs, scores_and_seconds


def write_csv(results: Sequence[RunResult], path: str | os.PathLike[str]) -> None:
    """Write a row a run: what it was, its scores, its settings and the versions it ran with.

    Columns: method, stream, seed, acc, bwt, la, fwt, forgetting, seconds, aia, min_acc, wc_acc,
    acc_task_il, diverged (the experience, from 0, in which the run became NaN or Inf; else blank);
    the scores on validation data as validation_acc and so on, if a run has them; then
    `restriction.*`, `timings.*`, `configuration.*`, `versions.*` and `metrics.*`, each sorted, the
    union over the runs, blank where a run has none. Nested settings get dotted names; lists,
    booleans and null are written as JSON. Floats read back to the same number; NaN is blank. UTF-8,
    lines end in a line feed. The file appears whole or not at all.

    Raises:
        ValueError: if results is empty.
        OSError: if path cannot be written; a file that was there is then unchanged.
    """
    require_runs(results)
    records = [_record(result) for result in results]
    columns = _columns(records)
    rows = ([cell(record.get(column, math.nan)) for column in columns] for record in records)
    write_atomically(path, csv_bytes(columns, rows))


def write_accuracy_csv(results: Sequence[RunResult], path: str | os.PathLike[str]) -> None:
    """Write the accuracy matrices in long form, a row a measured R[trained_on, tested_on].

    Columns: method, stream, seed, trained_on, tested_on (experiences, from 0), accuracy (fraction).
    NaN entries get no row. Written as `write_csv` writes.

    Raises:
        ValueError: if results is empty.
        OSError: if path cannot be written; a file that was there is then unchanged.
    """
    require_runs(results)
    columns = ["method", "stream", "seed", "trained_on", "tested_on", "accuracy"]
    rows = (
        [run.method, run.stream, str(run.seed), str(t), str(i), cell(float(run.accuracy[t, i]))]
        for run in results
        for t, i in _measured(run)
    )
    write_atomically(path, csv_bytes(columns, rows))


def _record(result: RunResult) -> dict[str, Any]:
    return {
        "method": result.method,
        "stream": result.stream,
        "seed": result.seed,
        **scores_and_seconds(result),
        "diverged": math.nan if result.diverged is None else result.diverged,
        **result.validation_scores,
        **flat("restriction", result.restriction),
        **flat("timings", result.timings),
        **flat("configuration", result.configuration),
        **flat("versions", result.versions),
        **flat("metrics", result.metrics),
    }


def flat(name: str, value: Any) -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name; an empty mapping is a leaf."""
    if not isinstance(value, Mapping):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, child in value.items():
        leaf = isinstance(child, Mapping) and not child
        leaves |= {f"{name}.{key}": child} if leaf else flat(f"{name}.{key}", child)
    return leaves


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {name for record in records for name in record}
    fixed = ["method", "stream", "seed", *HEADINGS, *FURTHER, "diverged"]
    validation = [f"validation_{name}" for name in (*HEADINGS, *FURTHER)]
    fixed += [name for name in validation if name in names]
    groups = ("restriction.", "timings.", "configuration.", "versions.", "metrics.")
    return fixed + [name for group in groups for name in sorted(names) if name.startswith(group)]


def cell(value: Any) -> str:
    """Return a value as the CSV files have it; NaN is blank."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return json.dumps(value)


def _measured(run: RunResult) -> list[tuple[int, int]]:
    size = len(run.accuracy)
    entries = [(t, i) for t in range(size) for i in range(size)]
    return [(t, i) for t, i in entries if not math.isnan(run.accuracy[t, i])]


def csv_bytes(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Return a CSV file with a line of the columns and one for each row."""
    return "".join(map(_csv_line, [columns, *rows])).encode("utf-8")


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    # Given "\n" as the line end, older Pythons leave a lone "\r" in a cell unquoted.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"
