"""Write the scores of finished results anew, from their accuracy matrices.

    python benchmarks/rescore.py benchmarks/results/*

For when the definition of a score changes: of each folder, the scores in results.csv and those in
table.md are computed from accuracy.csv as `compare` would compute them; nothing is trained. A score
that cannot be computed so, where a folder has no accuracy.csv, is left as it is, but for those
named by --unknown, which become blank.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from avalanche_mgem.experiment import RunResult
from avalanche_mgem.files import write_atomically
from avalanche_mgem.report.markdown import markdown_table
from avalanche_mgem.results.summary import FURTHER, HEADINGS

OF_R = ("acc", "bwt", "la", "forgetting", "aia", "min_acc", "wc_acc")
Key = tuple[str, str, str]  # method, stream, seed
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def matrices(path: Path) -> dict[Key, np.ndarray]:
    """R of each run of an accuracy.csv."""
    entries: dict[Key, list[tuple[int, int, float]]] = defaultdict(list)
    for row in read(path):
        place = int(row["trained_on"]), int(row["tested_on"])
        entries[key_of(row)].append((*place, float(row["accuracy"])))
    found = {}
    for key, measured in entries.items():
        size = 1 + max(max(t, i) for t, i, _ in measured)
        found[key] = np.full((size, size), math.nan)
        for t, i, accuracy in measured:
            found[key][t, i] = accuracy
    return found


def key_of(row: dict[str, str]) -> Key:
    return row["method"], row["stream"], row["seed"]


def result_of(row: dict[str, str], accuracy: np.ndarray) -> RunResult:
    """The run again: a baseline that gives the forward transfer that it had."""
    baseline = np.full(len(accuracy), math.nan)
    if row["fwt"]:
        baseline[1:] = np.diagonal(accuracy, offset=1) - float(row["fwt"])
    method, stream, seed = key_of(row)
    diverged = int(row["diverged"]) if row.get("diverged") else None
    return RunResult(
        method, stream, int(seed), accuracy, baseline, float(row["seconds"]), diverged=diverged
    )


def rescored(rows: Rows, found: dict[Key, np.ndarray], unknown: list[str]) -> Rows:
    """The rows with their scores anew, further scores after the seconds."""
    made = []
    for row in rows:
        scores = {name: row.get(name, "") for name in (*HEADINGS, *FURTHER)}
        scores |= dict.fromkeys(unknown, "")
        if key_of(row) in found:
            values = result_of(row, found[key_of(row)]).scores
            scores |= {n: "" if math.isnan(values[n]) else repr(values[n]) for n in OF_R}
        names = ("method", "stream", "seed")
        first = {**{name: row[name] for name in names}, **scores}
        made.append({**first, **{n: value for n, value in row.items() if n not in first}})
    return made


def text_of(rows: Rows) -> str:
    """The rows as `compare` writes them."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def table_again(path: Path, results: list[RunResult]) -> bytes:
    """The table of the methods that it has, in their order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = [line.split(" | ")[0][2:] for line in lines if line.startswith("| ")]
    methods = [cell.replace(r"\|", "|") for cell in cells[2:]]
    shown = [run for name in methods for run in results if run.method == name]
    return markdown_table(shown).encode()


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders with a results.csv.")],
    unknown: Annotated[
        list[str] | None, typer.Option(help="A score to blank where there is no accuracy.csv.")
    ] = None,
) -> None:
    for folder in folders:
        table, path = folder / "results.csv", folder / "accuracy.csv"
        if not table.exists():
            continue
        found = matrices(path) if path.exists() else {}
        rows = read(table)
        without = [] if found else list(unknown or [])
        write_atomically(table, text_of(rescored(rows, found, without)).encode())
        if found and (folder / "table.md").exists():
            results = [result_of(row, found[key_of(row)]) for row in rows]
            write_atomically(folder / "table.md", table_again(folder / "table.md", results))
        print(f"{folder}: {len(found)} of {len(rows)} runs have R")


if __name__ == "__main__":
    typer.run(main)
