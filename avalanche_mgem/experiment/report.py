"""Tables of finished runs, for the terminal and in Markdown.

A table compares methods on one stream; `by_stream` splits runs of several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from avalanche_mgem.experiment.result import RunResult
from avalanche_mgem.experiment.statistics import mean_interval

HEADINGS = {
    "acc": "ACC",
    "bwt": "BWT",
    "la": "LA",
    "fwt": "FWT",
    "forgetting": "Forgetting",
    "seconds": "Seconds",
}
_BEST = {"acc": max, "bwt": max, "la": max, "forgetting": min}
_SPACED, _TIGHT, _STACKED = " ± ", "±", "\n± "


def by_stream(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Return the runs of each stream, streams and runs in the order of first appearance."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.stream, []).append(result)
    return groups


def by_method(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Return the runs of each method on one stream, methods in the order of first appearance.

    Raises:
        ValueError: if results is empty, holds several streams, or holds a method and seed twice: an
            interval over seeds would take the copies for independent runs.
    """
    require_runs(results)
    streams = list(by_stream(results))
    if len(streams) > 1:
        raise ValueError(f"results must be of one stream (see by_stream), got {streams}")
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        runs = groups.setdefault(result.method, [])
        if any(run.seed == result.seed for run in runs):
            raise ValueError(
                f"results holds method={result.method!r}, seed={result.seed} twice; "
                "give runs with other settings another method name"
            )
        runs.append(result)
    return groups


def results_table(results: Sequence[RunResult], width: int | None = None) -> Table:
    """Return the comparison of the methods on one stream, a row a method.

    Accuracies are fractions, `0.793 ± 0.012`: the mean and the half-width of its 95% interval over
    the seeds, the mean alone for one seed, a dash where a run has no value. The best mean of ACC,
    BWT, LA and Forgetting is bold. Where that is too wide, `0.793±0.012` is tried, then two lines.

    Args:
        results: runs of one stream, in any order.
        width: columns of the console that will print it; by default those of the terminal, or what
            rich assumes where the output is no terminal (80).

    Raises:
        ValueError: as `by_method`.
    """
    rows = _summarise(results)
    available = Console().width if width is None else width
    for joint in (_SPACED, _TIGHT, _STACKED):
        table = _rich_table(rows, results[0].stream, joint)
        if _natural_width(table) <= available:
            break
    return table


def markdown_table(results: Sequence[RunResult]) -> str:
    """Return what `results_table` shows as Markdown: the stream, the table, and what it means.

    Raises:
        ValueError: as `by_method`.
    """
    rows = _summarise(results)
    best = _best_means(rows)
    lines = [
        f"Stream: {results[0].stream}",
        "",
        "| " + " | ".join(["Method", "Seeds", *HEADINGS.values()]) + " |",
        "| :-- |" + " --: |" * (1 + len(HEADINGS)),
        *(_markdown_row(row, best) for row in rows),
        "",
        _caption(rows),
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Row:
    """A method's row: number of seeds, and (mean, half-width) by column."""

    method: str
    seeds: int
    intervals: Mapping[str, tuple[float, float]]


def require_runs(results: Sequence[RunResult]) -> None:
    """Raise ValueError if there are no runs."""
    if len(results) == 0:
        raise ValueError("results must hold at least one run, got none")


def scores_and_seconds(result: RunResult) -> dict[str, float]:
    """The columns of the table: the scores, then the training time."""
    return {**result.scores, "seconds": float(result.seconds)}


def _summarise(results: Sequence[RunResult]) -> list[_Row]:
    rows = []
    for method, runs in by_method(results).items():
        values = [scores_and_seconds(run) for run in runs]
        intervals = {name: mean_interval([one[name] for one in values]) for name in HEADINGS}
        rows.append(_Row(method, len(runs), intervals))
    return rows


def _digits(column: str, mean: float) -> int:
    if column != "seconds":
        return 3
    return 0 if mean >= 100 else 1


def _shown(mean: float, digits: int) -> float:
    # Adding zero makes a negative zero positive; forgetting is the negative of a BWT that may be 0.
    return round(mean, digits) + 0.0


def _best_means(rows: Sequence[_Row]) -> dict[str, float]:
    """Return each column's best mean as it is shown, so that equal numbers are equally bold."""
    best = {}
    for column, choose in _BEST.items():
        means = [_shown(row.intervals[column][0], 3) for row in rows]
        best[column] = choose((mean for mean in means if not math.isnan(mean)), default=math.nan)
    return best


def _entries(row: _Row, best: Mapping[str, float], joint: str) -> Iterable[tuple[str, bool]]:
    """Yield the text of each score of a row, and whether it is the column's best."""
    for column, (mean, half_width) in row.intervals.items():
        if math.isnan(mean):
            yield "-", False
            continue
        digits = _digits(column, mean)
        text = f"{_shown(mean, digits):.{digits}f}"
        if not math.isnan(half_width):
            text += f"{joint}{half_width:.{digits}f}"
        yield text, _shown(mean, 3) == best.get(column)


def _caption(rows: Sequence[_Row]) -> str:
    if all(row.seeds == 1 for row in rows):
        return "One seed a method: no intervals. Bold: the best value."
    return (
        "Mean ± half-width of the 95% interval (Student's t) over the seeds; "
        "one seed: the value alone. Bold: the best mean."
    )


def _rich_table(rows: Sequence[_Row], stream: str, joint: str) -> Table:
    table = Table(
        title=Text(stream, style="bold"),
        caption=Text(_caption(rows)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Method", overflow="fold")
    for heading in ("Seeds", *HEADINGS.values()):
        table.add_column(heading, justify="right", overflow="fold")
    best = _best_means(rows)
    for row in rows:
        scores = (Text(text, "bold" if top else "") for text, top in _entries(row, best, joint))
        table.add_row(Text(row.method), str(row.seeds), *scores)
    return table


def _natural_width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _markdown_row(row: _Row, best: Mapping[str, float]) -> str:
    scores = (f"**{text}**" if top else text for text, top in _entries(row, best, _SPACED))
    return "| " + " | ".join([row.method.replace("|", r"\|"), str(row.seeds), *scores]) + " |"
