"""The metrics that a finished run has logged over its training."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

History = Mapping[str, list[tuple[int, float]]]
"""Name of a metric -> its values, each with the iterations that were trained until then."""

_PHASE = "/train_phase/"
_STREAM = "train_stream"


def read_history(path: Path) -> History:
    """Return what a run's file of metrics says of its training; nothing where there is no file.

    Metrics of the training phase alone: what was evaluated is in the run's accuracies. What follows
    the stream in a name, such as the block of a module, stays behind it.

    Raises:
        ValueError: the file is no such log.
    """
    if not path.exists():
        return {}
    history: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                name, phase, rest = row["metric"].partition(_PHASE)
                point = int(row["step"]), float(row["value"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is no log of scalar metrics: {error}") from error
            if phase:
                history.setdefault(name + rest.removeprefix(_STREAM), []).append(point)
    return history
