"""Tables of the results of `hybrid.py magnitudes`: every method against initialized and frozen.

    python benchmarks/papers/hybrid_table.py DIR --out DIR

For each stream in the folder and each method: ACC, LA and forgetting with their 95% intervals
(Student's t), how far an experience has moved the weights on the mean, and the paired differences
of ACC to initialized and to the better of initialized and the frozen ones. That one is chosen by
these very runs, which favours it. Written to hybrid.md, and shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from strength_table import shown

from avalanche_mgem.experiment import RunResult, load_results
from avalanche_mgem.results.statistics import mean_interval

Runs = dict[int, RunResult]

BASELINES = ("initialized", "frozen 0", "frozen 1", "frozen 2")
_HEAD = (
    "| method | seeds | rate | ACC | LA | forgetting | moved | ACC - initialized | - better |",
    "| :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
)


def main(
    runs: Annotated[Path, typer.Argument(help="Results folder of `hybrid.py magnitudes`.")],
    out: Annotated[Path, typer.Option(help="Where hybrid.md is written.")],
) -> None:
    folders = sorted(folder for folder in runs.iterdir() if folder.is_dir())
    lines = [line for folder in folders for line in table(folder.name, load_results([folder]))]
    out.mkdir(parents=True, exist_ok=True)
    (out / "hybrid.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def table(stream: str, results: Sequence[RunResult]) -> Iterator[str]:
    """Yield the lines of a stream's table."""
    by_method: dict[str, Runs] = {}
    for run in results:
        by_method.setdefault(run.method, {})[run.seed] = run
    there = [name for name in BASELINES if name in by_method]
    better = max(there, key=lambda name: _mean(by_method[name]), default="")
    yield f"### {stream}"
    yield ""
    yield f"The better of initialized and frozen: {better or 'none was run'}."
    yield ""
    yield from _HEAD
    for method in sorted(by_method, key=lambda name: (name not in BASELINES, name)):
        runs = by_method[method]
        scores = (
            shown(*mean_interval([run.scores[name] for run in runs.values()]))
            for name in ("acc", "la", "forgetting")
        )
        rates = {run.configuration["training"]["learning_rate"] for run in runs.values()}
        moved = fmean(run.metrics.get("Distance_Absolute", math.nan) for run in runs.values())
        others = (_difference(method, name, by_method) for name in ("initialized", better))
        cells = (method, len(runs), "/".join(f"{r:g}" for r in rates), *scores, f"{moved:.2f}")
        yield f"| {' | '.join(map(str, (*cells, *others)))} |"
    yield ""


def _mean(runs: Runs) -> float:
    return fmean(run.scores["acc"] for run in runs.values())


def _difference(method: str, other: str, by_method: dict[str, Runs]) -> str:
    """The paired difference of ACC over the seeds that both have."""
    runs, against = by_method[method], by_method.get(other, {})
    pairs = [
        runs[seed].scores["acc"] - against[seed].scores["acc"]
        for seed in sorted(runs)
        if seed in against
    ]
    return shown(*mean_interval(pairs)) if pairs and method != other else ""


if __name__ == "__main__":
    typer.run(main)
