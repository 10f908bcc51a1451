"""What the figures have in common: paper, colours, legend, and how they become files.

Figures are built without pyplot, so no display, no backend and no global state is touched.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from avalanche_mgem.results.result import RunResult

DPI = 150

# Okabe and Ito's colours without the yellow, too pale for a line on white, then four of Tol's. No
# two of 44 methods share colour and line style, no two of 12 a marker, for those who print in grey.
_COLOURS = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7"),
    *("#882255", "#332288", "#999933", "#7F7F7F"),
)
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG at 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """Return the figure as a PDF, its letters as outlines of TrueType, as publishers ask."""
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure as uint8 [height, width, 3]."""
    drawn: Any = FigureCanvasAgg(figure)
    drawn.draw()
    return np.asarray(drawn.buffer_rgba(), dtype=np.uint8)[..., :3]


LEGEND = 34
"""Letters in a line of the legend, so that it leaves room for the axes."""


def canvas(title: str) -> tuple[Figure, Axes]:
    """Return an empty figure with one pair of axes."""
    figure = sheet(9.0, 5.5)
    axes = figure.add_subplot()
    axes.set_title(plain(title))
    tidy(axes)
    return figure, axes


def panels(title: str, count: int, *, columns: int, size: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` pairs of axes, row by row, of about size x size inches."""
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)  # no row much shorter than the others
    width = max(size * columns + 0.8, 5.5)
    figure = sheet(width, size * rows + 1.0)
    figure.suptitle(plain(title, int(width * 10)), fontsize="large")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    for above in axes[count - columns : count]:
        above.xaxis.set_tick_params(labelbottom=True)  # also where the row below is not full
    return figure, axes[:count]


def sheet(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def message_sheet(title: str, message: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure, axes = canvas(title)
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
    return figure


def tidy(axes: Axes) -> None:
    """Leave of the axes what one reads: a pale grid, and no frame above and to the right."""
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain(text: str, width: int = 70) -> str:
    """Return text that is shown as it is, in lines of at most `width` letters."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
    # A pair of dollars would be read as a formula, and a bad formula is an error.
    return "\n".join(lines).replace("$", r"\$")


def colour(index: int) -> str:
    """Return the colour of the method with that index."""
    return _COLOURS[index % len(_COLOURS)]


def style(index: int) -> dict[str, Any]:
    """Return colour, line and marker of the method with that index."""
    return {
        "color": colour(index),
        "linestyle": _LINES[index % len(_LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def explain(groups: Mapping[str, Sequence[RunResult]], interval: str) -> str:
    """Say what is drawn of each method; interval: how its interval is drawn."""
    if all(len(runs) == 1 for runs in groups.values()):
        return "One seed: no intervals"
    return f"Mean over the seeds;\n{interval}"


def legend(figure: Figure, axes: Axes, title: str) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        title=title,
        title_fontsize=8,
        alignment="left",
        frameon=False,
        fontsize=9,
        handlelength=3.5,
    )
