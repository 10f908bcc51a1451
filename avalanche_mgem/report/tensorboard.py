"""A TensorBoard log of finished runs: their settings and scores side by side, and the figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avalanche_mgem.report.figures.canvas import pixels
from avalanche_mgem.results.file_names import file_name
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.variants import own_settings

_METRICS = {"acc": "ACC", "bwt": "BWT", "la": "LA", "fwt": "FWT"}


def write_hparams(results: Iterable[RunResult], folder: Path) -> None:
    """Write what TensorBoard's HParams tab shows of each run, into a folder a run.

    Hyper-parameters: method, stream, seed and the settings of the run. Metrics: `score/ACC`,
    `score/BWT`, `score/LA`, `score/FWT`, and those on validation data as `validation/ACC` and so
    on; one that was not measured is left out. A run that diverged has `diverged` alone, the
    experience in which it did.

    Raises:
        OSError: folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for run in results:
        scores = {**_scores("score", run), **_scores("validation", run.on_validation)}
        if run.diverged is not None:
            scores["diverged"] = float(run.diverged)
        # Not by add_hparams: it also writes the list of a run's own settings as that of all runs,
        # and TensorBoard shows the columns of the first run alone.
        _, start, end = hparams(hyperparameters(run), scores)  # type: ignore[no-untyped-call]
        place = folder / file_name(run.stream) / file_name(run.method) / f"seed{run.seed}"
        with SummaryWriter(str(place)) as writer:
            writer.file_writer.add_summary(start)
            writer.file_writer.add_summary(end)
            for name, score in scores.items():
                writer.add_scalar(name, score)


def _scores(group: str, run: RunResult | None) -> dict[str, float]:
    """Return the scores of a run that were measured, by the names that TensorBoard shows."""
    measured = {} if run is None else run.scores
    return {
        f"{group}/{name}": measured[key]
        for key, name in _METRICS.items()
        if not math.isnan(measured.get(key, math.nan))
    }


def write_images(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write figures as TensorBoard images, by their names.

    Raises:
        OSError: folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, figure in figures.items():
            writer.add_image(name, np.ascontiguousarray(pixels(figure)), dataformats="HWC")


def hyperparameters(run: RunResult) -> dict[str, str | int | float]:
    """Return method, stream, seed and settings of a run, as TensorBoard takes them."""
    settings = {name: _plain(value) for name, value in own_settings(run).items()}
    return {**settings, "method": run.method, "stream": run.stream, "seed": run.seed}


def _plain(value: Any) -> str | int | float:
    if isinstance(value, str):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number else json.dumps(value)


def event_files(folder: Path) -> Sequence[Path]:
    """Return the files of TensorBoard's that lie in folder."""
    return sorted(folder.rglob("events.out.tfevents.*"))
