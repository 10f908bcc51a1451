"""Finished runs summed up: by stream, by method, and a row a method with means and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from avalanche_mgem.arguments import as_list
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval

HEADINGS = {
    "acc": "ACC",
    "bwt": "BWT",
    "la": "LA",
    "fwt": "FWT",
    "forgetting": "Forgetting",
    "seconds": "Seconds",
}
"""The columns of every table, and what stands above them."""

FURTHER = {
    "aia": "AIA",
    "min_acc": "min-ACC",
    "wc_acc": "WC-ACC",
    "acc_task_il": "Task-IL ACC",
}
"""The scores that have a table of their own, and what stands above them."""

BEST = {"acc": max, "bwt": max, "la": max, "forgetting": min, **dict.fromkeys(FURTHER, max)}
"""Which value of a column is the best, for those that have a best one."""


def by_stream(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Return the runs of each stream, streams and runs in the order of first appearance."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.stream, []).append(result)
    return groups


def on_validation(results: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs that have scores on validation data, with those in place of the others."""
    runs = [run.on_validation for run in results]
    return [replace(run, stream=validation_name(run.stream)) for run in runs if run]


def validation_name(stream: str) -> str:
    """Return the name under which a stream's scores on validation data are shown."""
    return f"{stream}, validation data"


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


def without_diverged(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs that did not diverge; all of them where none is left, whose scores are NaN.

    What is shown of a method is shown of these.
    """
    return [run for run in runs if run.diverged is None] or list(runs)


def divergence_note(runs: Sequence[RunResult]) -> str:
    """Say behind a method's name how many of its runs diverged; empty: none did."""
    count = sum(run.diverged is not None for run in runs)
    if count == 0:
        return ""
    return " (diverged)" if count == len(runs) else f" ({count} of {len(runs)} diverged)"


@dataclass(frozen=True)
class Row:
    """A method's row.

    Args:
        method: its name.
        seeds: how many there are.
        intervals: (mean, half-width) by column, over the seeds that did not diverge.
        diverged: how many did.
    """

    method: str
    seeds: int
    intervals: Mapping[str, tuple[float, float]]
    diverged: int = 0

    @property
    def seeds_text(self) -> str:
        """The number of seeds, and of those that diverged."""
        return f"{self.seeds} ({self.diverged} diverged)" if self.diverged else str(self.seeds)


def require_runs(results: Sequence[RunResult]) -> None:
    """Raise ValueError if there are no runs, or something else."""
    if not as_list("results", results, RunResult, what="a list of RunResult"):
        raise ValueError("results must hold at least one run, got none")


def stream_length(method: str, runs: Sequence[RunResult]) -> int:
    """Return the number of experiences of the method's runs.

    Raises:
        ValueError: they differ.
    """
    lengths = sorted({len(run.accuracy) for run in runs})
    if len(lengths) > 1:
        raise ValueError(
            f"results of method={method!r} must have as many experiences each, got {lengths}"
        )
    return lengths[0]


def scores_and_seconds(result: RunResult) -> dict[str, float]:
    """The columns of the tables: the scores, and the training time."""
    return {**result.scores, "seconds": float(result.seconds)}


def summarise(results: Sequence[RunResult], columns: Mapping[str, str] = HEADINGS) -> list[Row]:
    """Return a row a method on one stream; raises ValueError as `by_method`."""
    rows = []
    for method, runs in by_method(results).items():
        values = [scores_and_seconds(run) for run in without_diverged(runs)]
        intervals = {name: mean_interval([one[name] for one in values]) for name in columns}
        diverged = sum(run.diverged is not None for run in runs)
        if diverged == len(runs):
            intervals = dict.fromkeys(columns, (math.nan, math.nan))
        rows.append(Row(method, len(runs), intervals, diverged))
    return rows


def digits(column: str, mean: float) -> int:
    """Return how many decimals a column's numbers are shown with."""
    if column != "seconds":
        return 3
    return 0 if mean >= 100 else 1


def shown(mean: float, places: int) -> float:
    """Return a mean as rounded as it is shown."""
    # Adding zero makes a negative zero positive.
    return round(mean, places) + 0.0


def best_means(rows: Sequence[Row]) -> dict[str, float]:
    """Return each column's best mean as it is shown, so that equal numbers are equally bold.

    A method of which a seed diverged is never the best.
    """
    best = {}
    for column, choose in BEST.items():
        if not rows or column not in rows[0].intervals:
            continue
        means = [shown(row.intervals[column][0], 3) for row in rows if not row.diverged]
        best[column] = choose((mean for mean in means if not math.isnan(mean)), default=math.nan)
    return best


def entries(row: Row, best: Mapping[str, float], joint: str) -> Iterable[tuple[str, bool]]:
    """Yield the text of each score of a row, and whether it is the column's best.

    joint stands between mean and half-width; "-" stands for what was not measured.
    """
    for column, (mean, half_width) in row.intervals.items():
        if math.isnan(mean):
            yield "-", False
            continue
        places = digits(column, mean)
        text = f"{shown(mean, places):.{places}f}"
        if not math.isnan(half_width):
            text += f"{joint}{half_width:.{places}f}"
        yield text, not row.diverged and shown(mean, 3) == best.get(column)


def caption(rows: Sequence[Row]) -> str:
    """Say what the numbers of a table mean."""
    if all(row.seeds == 1 for row in rows):
        meaning = "One seed a method: no intervals. Bold: the best value."
    else:
        meaning = (
            "Mean ± half-width of the 95% interval (Student's t) over the seeds; "
            "one seed: the value alone. Bold: the best mean."
        )
    if any(row.diverged for row in rows):
        meaning += (
            " Diverged: loss, weights or outputs became NaN or Inf. Such seeds are counted and "
            "left out of the means, and their method is never the best."
        )
    return meaning
