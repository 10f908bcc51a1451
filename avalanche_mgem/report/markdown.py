"""Tables of finished runs, for the terminal and in Markdown.

A table compares methods on one stream; `summary.by_stream` splits runs of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.summary import (
    HEADINGS,
    Row,
    best_means,
    caption,
    entries,
    summarise,
)

_SPACED, _TIGHT, _STACKED = " ± ", "±", "\n± "


def results_table(results: Sequence[RunResult], width: int | None = None) -> Table:
    """Return the comparison of the methods on one stream, a row a method.

    Accuracies are fractions, `0.793 ± 0.012`: the mean and the half-width of its 95% interval over
    the seeds, the mean alone for one seed, a dash where a run has no value. Seeds that diverged are
    counted, "3 (1 diverged)", and left out. The best mean of ACC, BWT, LA and Forgetting is bold.
    Where that is too wide, `0.793±0.012` is tried, then two lines.

    Args:
        results: runs of one stream, in any order.
        width: columns of the console that will print it; by default those of the terminal, or what
            rich assumes where the output is no terminal (80).

    Raises:
        ValueError: as `by_method`.
    """
    rows = summarise(results)
    available = Console().width if width is None else width
    for joint in (_SPACED, _TIGHT, _STACKED):
        table = _rich_table(rows, results[0].stream, joint)
        if _natural_width(table) <= available:
            break
    return table


def markdown_table(results: Sequence[RunResult], columns: Mapping[str, str] = HEADINGS) -> str:
    """Return what `results_table` shows as Markdown: the stream, the table, and what it means.

    columns: the scores and what stands above them; `summary.FURTHER` has further ones.

    Raises:
        ValueError: as `by_method`.
    """
    rows = summarise(results, columns)
    best = best_means(rows)
    lines = [
        f"Stream: {results[0].stream}",
        "",
        "| " + " | ".join(["Method", "Seeds", *columns.values()]) + " |",
        "| :-- |" + " --: |" * (1 + len(columns)),
        *(_markdown_row(row, best) for row in rows),
        "",
        caption(rows),
    ]
    return "\n".join(lines) + "\n"


def empty_table(title: str, explanation: str, headings: Sequence[str | Text]) -> Table:
    """Return a table for the terminal without rows: the first column to the left, numbers right."""
    table = Table(
        title=Text(title, style="bold"),
        caption=Text(explanation),
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    first, *others = headings
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _rich_table(rows: Sequence[Row], stream: str, joint: str) -> Table:
    table = empty_table(stream, caption(rows), ["Method", "Seeds", *HEADINGS.values()])
    best = best_means(rows)
    for row in rows:
        scores = (Text(text, "bold" if top else "") for text, top in entries(row, best, joint))
        table.add_row(Text(row.method), row.seeds_text, *scores)
    return table


def _natural_width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _markdown_row(row: Row, best: Mapping[str, float]) -> str:
    scores = (f"**{text}**" if top else text for text, top in entries(row, best, _SPACED))
    return "| " + " | ".join([row.method.replace("|", r"\|"), row.seeds_text, *scores]) + " |"
