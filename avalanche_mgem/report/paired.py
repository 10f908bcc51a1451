"""What the paired comparison of two methods shows, for the terminal, in Markdown and as CSV."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from avalanche_mgem.files import write_atomically
from avalanche_mgem.report.markdown import empty_table
from avalanche_mgem.results.csv import cell, csv_bytes
from avalanche_mgem.results.paired import PairedComparison, PairedScore
from avalanche_mgem.results.summary import FURTHER, HEADINGS, digits, shown

_ALPHA = 0.05
_NEEDED = 6  # pairs of which the smallest p, 2^(1 - pairs), is below that
_COLUMNS = (
    *("stream", "first", "second", "score", "pairs", "mean_first", "mean_second"),
    *("difference", "half_width", "p", "smallest_p"),
)


def paired_table(comparison: PairedComparison) -> Table:
    """Return the table of a paired comparison, a row a score, for the terminal."""
    headings = [Text(heading) for heading in _headings(comparison)]  # names may look like markup
    table = empty_table(_title(comparison), paired_caption(comparison), headings)
    for row in _rows(comparison):
        table.add_row(*map(Text, row))
    return table


def paired_markdown(comparisons: Sequence[PairedComparison]) -> str:
    """Return what `paired_table` shows of each comparison as Markdown."""
    texts = []
    for comparison in comparisons:
        headings = _headings(comparison)
        lines = [
            _title(comparison),
            "",
            _markdown_row(headings),
            "| :-- |" + " --: |" * (len(headings) - 1),
            *map(_markdown_row, _rows(comparison)),
            "",
            paired_caption(comparison),
        ]
        texts.append("\n".join(lines) + "\n")
    return "\n".join(texts)


def write_paired_csv(comparisons: Sequence[PairedComparison], path: str | os.PathLike[str]) -> None:
    """Write a row for each comparison and score: stream, first, second, score, pairs, and numbers.

    The numbers are mean_first, mean_second, difference, half_width, p and smallest_p, see
    `PairedScore`; NaN is blank. Written as `results.csv.write_csv` writes.

    Raises:
        OSError: path cannot be written; a file that was there is then unchanged.
    """
    rows = (
        [
            *(each.stream, each.first, each.second, name, str(len(each.seeds))),
            *map(cell, (score.first, score.second, score.difference, score.half_width, score.p)),
            cell(each.smallest_p if each.seeds else math.nan),
        ]
        for each in comparisons
        for name, score in each.scores.items()
    )
    write_atomically(path, csv_bytes(_COLUMNS, rows))


def paired_caption(comparison: PairedComparison) -> str:
    """Say what the numbers mean, what was left out, and where the seeds are too few."""
    pairs = len(comparison.seeds)
    parts = [_meaning(comparison), _too_few(pairs)]
    if comparison.diverged:
        parts.append(f"Left out, because a run diverged: {_seeds(comparison.diverged)}.")
    if comparison.unpaired:
        parts.append(f"Left out, because one method alone has it: {_seeds(comparison.unpaired)}.")
    if comparison.also_differs:
        parts.append(f"Beside the method differ: {'; '.join(comparison.also_differs)}.")
    return " ".join(filter(None, parts))


def _meaning(comparison: PairedComparison) -> str:
    if not comparison.seeds:
        return ""
    return (
        f"Means over {_seeds(comparison.seeds)}. Difference: {comparison.first} - "
        f"{comparison.second}, seed by seed, ± half-width of the 95% interval of its mean "
        "(Student's t). p: Wilcoxon's signed-rank test, two-sided, exact; seeds without a "
        "difference are left out of it; not corrected for the number of scores."
    )


def _too_few(pairs: int) -> str:
    """Say it in words; empty where there are enough."""
    if pairs == 0:
        return "No pair of runs is left: nothing can be said."
    if pairs == 1:
        return (
            "One pair has no interval, and its p is 1 whatever the difference: too few seeds to "
            "say anything."
        )
    if pairs < _NEEDED:
        return (
            f"Too few seeds for the test: with {pairs} pairs p cannot be below "
            f"{2.0 ** (1 - pairs):g}, however large the difference; below {_ALPHA} takes "
            f"{_NEEDED} pairs or more."
        )
    return ""


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _title(comparison: PairedComparison) -> str:
    return f"Stream: {comparison.stream}, paired: {comparison.first} - {comparison.second}"


def _headings(comparison: PairedComparison) -> list[str]:
    return ["Score", comparison.first, comparison.second, "Difference", "p"]


def _rows(comparison: PairedComparison) -> Iterator[list[str]]:
    for name, heading in {**HEADINGS, **FURTHER}.items():
        yield [heading, *_entries(name, comparison.scores[name])]


def _entries(name: str, score: PairedScore) -> list[str]:
    if math.isnan(score.difference):
        return ["-"] * 4
    places = digits(name, min(abs(score.first), abs(score.second)))
    first, second = (f"{shown(mean, places):.{places}f}" for mean in (score.first, score.second))
    difference = f"{shown(score.difference, places):+.{places}f}"
    if not math.isnan(score.half_width):
        difference += f" ± {score.half_width:.{places}f}"
    return [first, second, difference, f"{score.p:.2g}"]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(each.replace("|", r"\|") for each in cells) + " |"
