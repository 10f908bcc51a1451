"""The table of a comparison in LaTeX, for a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.summary import (
    BEST,
    HEADINGS,
    Row,
    best_means,
    caption,
    entries,
    summarise,
)

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # A bracket or a star after the end of a row would be taken for an argument of it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}


def latex_table(results: Sequence[RunResult], columns: Mapping[str, str] = HEADINGS) -> str:
    r"""Return what `results_table` shows as a LaTeX tabular, to be read by `\input`.

    The preamble needs `\usepackage{booktabs}`. The best mean of a column is bold, with its
    interval; an arrow in the heading says which way is better. columns: as of `markdown_table`.

    Raises:
        ValueError: as `summary.by_method`.
    """
    rows = summarise(results, columns)
    best = best_means(rows)
    headings = ["Method", "Seeds", *(_heading(*column) for column in columns.items())]
    lines = [
        f"% Stream: {_one_line(results[0].stream)}",
        f"% {caption(rows)}",
        r"% Needs \usepackage{booktabs}.",
        r"\begin{tabular}{l" + "r" * (1 + len(columns)) + "}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
        *(_latex_row(row, best) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is, on one line."""
    return "".join(_SPECIAL.get(letter, letter) for letter in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text).split())


def _heading(column: str, text: str) -> str:
    arrows = {max: r" $\uparrow$", min: r" $\downarrow$"}
    return text + (arrows[BEST[column]] if column in BEST else "")


def _latex_row(row: Row, best: Mapping[str, float]) -> str:
    scores = (_latex_entry(text, top) for text, top in entries(row, best, r" \pm "))
    return " & ".join([escape_latex(row.method), row.seeds_text, *scores]) + r" \\"


def _latex_entry(text: str, top: bool) -> str:
    if text == "-":
        return "--"
    return rf"$\mathbf{{{text}}}$" if top else f"${text}$"
