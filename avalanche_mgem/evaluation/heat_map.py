"""The accuracy matrix as a picture."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from avalanche_mgem.evaluation.matrix import Matrix

_MOST_NUMBERS = 12  # experiences with more would make the numbers unreadable


def heat_map(accuracy: Matrix, title: str = "") -> Figure:
    """Draw R, float [T, T] in [0, 1]: trained on runs down, tested on across; NaN is grey.

    Without a task for each experience it is [training experiences, evaluated experiences].
    """
    figure = Figure(figsize=(5.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    image = axes.imshow(accuracy, cmap="cividis", vmin=0.0, vmax=1.0)
    if max(accuracy.shape) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(accuracy):
            shade = "black" if value > 0.5 else "white"
            text = "" if math.isnan(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="Tested on experience", ylabel="After training on experience", title=title)
    figure.colorbar(image, label="Accuracy")
    return figure
