"""Finished runs as one HTML file that needs no network: a table to sort, and charts to try."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from avalanche_mgem.report.charts import (
    Chart,
    history_chart,
    matrix_chart,
    tasks_chart,
    tradeoff_chart,
)
from avalanche_mgem.results.histories import History
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.summary import (
    FURTHER,
    HEADINGS,
    Row,
    best_means,
    by_stream,
    caption,
    entries,
    on_validation,
    require_runs,
    summarise,
)

_TITLES = {
    "tradeoff": "Learning accuracy against backward transfer",
    "tasks": "Accuracy of every method, by task",
    "matrix": "Accuracy matrix R of one method",
    "history": "What the restriction did",
}
_NOTES = {
    "tradeoff": "A dot is a seed. Click a method in the legend to show it alone.",
    "tasks": "Move the slider to see the accuracies after an earlier task.",
    "matrix": "Rows: the task trained last. Columns: the task tested.",
    "history": "Choose a metric. The band is the 95% interval over the seeds.",
}


def html_page(results: Sequence[RunResult], histories: Sequence[History]) -> str:
    """Return finished runs as an HTML page of its own: no other file, no network.

    Of each stream: the table, sorted by a click on a heading; learning accuracy against backward
    transfer, with the settings of a run in the tooltip; R as a heat map with a slider over the
    experiences, and that of one method; what the restriction did over training. The charts are
    Vega-Lite's (0.9 MB with its JavaScript).

    Args:
        results: runs of one or several streams.
        histories: of each run, its metrics over training; empty where there are none.

    Raises:
        ValueError: as `summary.by_method`, or if the runs of a method differ in length.
        ImportError: vl-convert-python is not installed.
    """
    require_runs(results)
    library = javascript()
    of_run = dict(zip(map(id, results), histories, strict=True))
    sections, charts = [], dict[str, Chart]()
    for index, (stream, runs) in enumerate(by_stream(results).items()):
        own = _charts(runs, [of_run[id(run)] for run in runs])
        ids = {f"{name}-{index}": name for name in own}
        charts |= {place: own[name] for place, name in ids.items()}
        sections.append(_section(stream, runs, ids))
    return _page(
        f"Methods compared on {' and '.join(by_stream(results))}",
        "\n".join(sections),
        charts,
        library,
    )


def javascript() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, which sets `window.vegaEmbed`.

    Raises:
        ImportError: vl-convert-python is not installed; the message says how to get it.
    """
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise ImportError(
            "html needs vl_convert, which is not installed: pip install 'avalanche-mgem[html]'"
        ) from error
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _charts(runs: Sequence[RunResult], histories: Sequence[History]) -> dict[str, Chart]:
    history = history_chart(runs, histories)
    charts = {
        "tradeoff": tradeoff_chart(runs),
        "tasks": tasks_chart(runs),
        "matrix": matrix_chart(runs),
    }
    return charts if history is None else {**charts, "history": history}


def _section(stream: str, runs: Sequence[RunResult], ids: dict[str, str]) -> str:
    held_out = on_validation(runs)
    lines = [f"<section><h2>{escape(stream)}</h2>", *_table(runs)]
    if held_out:
        lines += [f"<h3>{escape(held_out[0].stream)}</h3>", *_table(held_out)]
    for place, name in ids.items():
        lines += [f"<h3>{_TITLES[name]}</h3>", f'<p class="note">{_NOTES[name]}</p>']
        lines.append(f'<div class="wide"><div id="{place}"></div></div>')
    return "\n".join([*lines, "</section>"])


def _table(runs: Sequence[RunResult]) -> list[str]:
    columns = {**HEADINGS, **FURTHER}
    rows = summarise(runs, columns)
    best = best_means(rows)
    kinds = {"Method": "text", "Seeds": "number", **dict.fromkeys(columns.values(), "number")}
    headings = "".join(
        f'<th data-kind="{kind}"><button type="button">{escape(name)}</button></th>'
        for name, kind in kinds.items()
    )
    return [
        f'<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>',
        *(_row(row, best, list(columns)) for row in rows),
        f'</tbody></table></div><p class="note">{escape(caption(rows))}</p>',
    ]


def _row(row: Row, best: Any, columns: Sequence[str]) -> str:
    cells = [_cell(row.method, escape(row.method)), _cell(row.seeds, escape(row.seeds_text))]
    for column, (text, top) in zip(columns, entries(row, best, " ± "), strict=True):
        mean = row.intervals[column][0]
        shown = f"<strong>{escape(text)}</strong>" if top else escape(text)
        cells.append(_cell("" if math.isnan(mean) else mean, shown))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: object, shown: str) -> str:
    return f'<td data-value="{escape(str(value))}">{shown}</td>'


def _page(title: str, sections: str, charts: dict[str, Chart], library: str) -> str:
    page = resources.files("avalanche_mgem.report") / "page"
    texts = {name: (page / name).read_text(encoding="utf-8") for name in _FILES}
    # Within a script, nothing may look like its end.
    plain = json.dumps(charts, allow_nan=False).replace("<", "\\u003c")
    return Template(texts["page.html"]).substitute(
        title=escape(title),
        style=texts["page.css"],
        sections=sections,
        library=library.replace("</script", "<\\/script"),
        charts=plain,
        script=texts["page.js"],
    )


_FILES = ("page.html", "page.css", "page.js")
