"""Tables of strength.py's results: every memory strength against GEM's best.

    python benchmarks/papers/strength_table.py DIR --choosing DIR --out DIR

DIR holds the runs of `strength.py compare`, --choosing those of `strength.py choose`, which say
what GEM's best fixed strength is, with other seeds. For each method: ACC and BWT with their 95%
intervals (Student's t), the worst seed, how far it is below the method's median, and the paired
difference of ACC to GEM at that strength. Written to strength.md, and shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from strength import best

from avalanche_mgem.experiment import RunResult, load_results
from avalanche_mgem.results.statistics import mean_interval

Scores = Mapping[str, Mapping[int, RunResult]]

_HEAD = (
    "| method | seeds | ACC | BWT | worst | below median | ACC - best GEM |",
    "| :-- | --: | --: | --: | --: | --: | --: |",
)


def main(
    runs: Annotated[Path, typer.Argument(help="Results folder of `strength.py compare`.")],
    choosing: Annotated[Path, typer.Option(help="Results folder of `strength.py choose`.")],
    out: Annotated[Path, typer.Option(help="Where strength.md is written.")],
) -> None:
    reference = best(load_results(choosing))
    text = "\n".join(table(load_results(runs), reference)) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "strength.md").write_text(text, encoding="utf-8")
    print(text, end="")


def table(results: Sequence[RunResult], reference: str) -> Iterator[str]:
    """Yield the lines of the table; reference: the method that all are compared with."""
    by_method: dict[str, dict[int, RunResult]] = {}
    for run in results:
        by_method.setdefault(run.method, {})[run.seed] = run
    yield f"Best fixed strength of GEM, chosen with other seeds: {reference}."
    yield ""
    yield from _HEAD
    for method in sorted(by_method):
        yield _row(method, by_method, reference)


def _row(method: str, by_method: Scores, reference: str) -> str:
    runs, other = by_method[method], by_method.get(reference, {})
    acc = [run.scores["acc"] for run in runs.values()]
    bwt = [run.scores["bwt"] for run in runs.values()]
    pairs = [runs[s].scores["acc"] - other[s].scores["acc"] for s in sorted(runs) if s in other]
    difference = shown(*mean_interval(pairs)) if pairs and method != reference else ""
    return (
        f"| {method} | {len(acc)} | {shown(*mean_interval(acc))} | {shown(*mean_interval(bwt))} "
        f"| {min(acc):.3f} | {median(acc) - min(acc):.3f} | {difference} |"
    )


def shown(mean: float, half_width: float) -> str:
    return f"{mean:.3f} ± {half_width:.3f}"


if __name__ == "__main__":
    typer.run(main)
