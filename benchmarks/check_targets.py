"""Compare results with targets.csv; fail when a figure is too low, and when it is too high.

    python benchmarks/check_targets.py benchmarks/results/mgem-permuted-mnist/results.csv

A stream's targets are all wanted at once: give every file that has some of them, such as those of
workbench-split-mnist and strength-split-mnist together.

A figure that is suddenly much better is as much a sign of a mistake as one that is worse.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

TARGETS = Path(__file__).with_name("targets.csv")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


Stream = tuple[str, str, str]  # its name, how many experiences, how many training samples in each


def means(rows: list[dict[str, str]]) -> dict[tuple[Stream, str, str], float]:
    """Mean of each score over the seeds, by (stream, method, score); NaN where one diverged."""
    values: dict[tuple[Stream, str, str], list[float]] = defaultdict(list)
    for row in rows:
        # The name of a stream of texts says which tasks, and so how many.
        sizes = (
            row.get(f"configuration.stream.arguments.{size}", "")
            for size in ("n_experiences", "train_per_experience")
        )
        stream = row["stream"], *sizes
        for score in ("acc", "bwt", "la"):
            if row.get("diverged"):
                values[stream, row["method"], score].append(math.nan)
            elif row[score]:  # joint training has no BWT
                values[stream, row["method"], score].append(float(row[score]))
    return {key: statistics.fmean(numbers) for key, numbers in values.items()}


def main(
    results: Annotated[list[Path], typer.Argument(help="results.csv files of comparisons.")],
) -> None:
    measured = means([row for path in results for row in read(path)])
    streams = {stream for stream, _, _ in measured}
    table = Table("stream", "experiences", "samples", "method", "score")
    for name in ("measured", "target", "tolerance", ""):
        table.add_column(name)
    failed = 0
    for target in read(TARGETS):
        stream = target["stream"], target["experiences"], target["samples"]
        if stream not in streams:
            continue
        value = measured.get((stream, target["method"], target["score"]))
        wanted, tolerance = float(target["target"]), float(target["tolerance"])
        good = value is not None and abs(value - wanted) <= tolerance
        failed += not good
        shown = "missing" if value is None else f"{value:.3f}"
        names = (*stream, target["method"], target["score"])
        table.add_row(*names, shown, target["target"], target["tolerance"], "" if good else "FAILS")
    console = Console()
    console.print(table)
    console.print(f"{table.row_count} targets, {failed} failed")
    if failed or not table.row_count:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
