"""Tables of the results: on the terminal, and as Markdown."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from avalanche_mgem.files import write_atomically

_HEADINGS = (
    "case",
    "measure",
    "median (quartiles)",
    "ours",
    "baseline",
    "pairs",
    "gradient",
    "parameters",
    "figure",
    "at least / aim",
    "",
)


def table(rows: list[dict[str, str]]) -> Table:
    """Return the rows for the terminal."""
    shown = Table()
    for heading in _HEADINGS:
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*_cells(row), style="red" if row["verdict"] == "MISSED" else None)
    return shown


def write_markdown(rows: list[dict[str, str]], path: Path) -> None:
    """Write the rows as a Markdown table, and what they were measured with."""
    lines = [
        "Ratios are GEMPlugin's time / ours, medians of pairs. `gradient` and `parameters`: the",
        "largest relative difference of the projected gradient, and the median one of the",
        "parameters at the end.",
        "",
        _row(_HEADINGS),
        _row([":--"] * len(_HEADINGS)),
        *(_row(_cells(row)) for row in rows),
    ]
    if rows:
        names = list(rows[0])
        told = names[names.index("verdict") + 1 :]
        lines += ["", ", ".join(f"{name} {rows[0][name]}" for name in told)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: dict[str, str]) -> list[str]:
    wanted = " / ".join(each for each in (row["at_least"], row["aim"]) if each)
    return [
        row["case"],
        row["measure"],
        f"{_short(row['value'])} ({_short(row['quartile_1'])}-{_short(row['quartile_3'])})",
        _with_unit(row["ours"], row["unit"]),
        _with_unit(row["baseline_value"], row["unit"]),
        row["pairs"],
        _small(row["gradient_difference"]),
        _small(row["parameter_difference"]),
        row["figure"],
        wanted,
        row["verdict"],
    ]


def _short(number: str) -> str:
    return f"{float(number):.3g}" if number else ""


def _small(number: str) -> str:
    return f"{float(number):.1e}" if number else ""


def _with_unit(number: str, unit: str) -> str:
    return f"{_short(number)} {unit}" if number else ""
