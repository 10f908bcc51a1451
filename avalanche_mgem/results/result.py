"""What one finished run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from avalanche_mgem.evaluation.curve import AccuracyCurve
from avalanche_mgem.evaluation.matrix import (
    Matrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    minimum_accuracy,
    worst_case_accuracy,
)


@dataclass(frozen=True)
class HeldOut:
    """What was measured on the data that were held out of training.

    Args:
        accuracy: R, float [T, T]; NaN where it was not measured.
        baseline: accuracies before any training, float [T]; NaN where not measured.
        masked: R with the answers by argmax over each task's own classes, float [T, T].
    """

    accuracy: Matrix
    baseline: np.ndarray[Any, np.dtype[np.float64]]
    masked: Matrix


@dataclass(frozen=True)
class RunResult:
    """One method trained on one stream with one seed.

    Args:
        method: name in the registry.
        stream: name of the stream.
        seed: of the stream, the model and the training.
        accuracy: R, float [T, T]; NaN where it was not measured.
        baseline: accuracies before any training, float [T]; NaN where not measured.
        seconds: time spent in `strategy.train()`, evaluation left out.
        restriction: what the restriction did, by metric name; empty for methods without one.
        timings: seconds that each part of the restriction took in an iteration with a memory.
        metrics: means over the run by name: how far an experience moved the weights, what a gate
            masked; of O-LoRA's penalty, that over the last experience.
        masked: R with the answers by argmax over each task's own classes, float [T, T]; None where
            it was not measured, as by earlier versions.
        curve: the accuracies of all evaluations, those within the experiences too; None where there
            were none of these.
        configuration: everything the run was started with, as JSON values.
        versions: of the packages that decide the numbers.
        diverged: the experience (from 0) in which loss, weights or outputs became NaN or Inf; the
            run ended there, R is NaN from that row on. None: they did not.
        validation: R and so on of the validation data; None: none were held out.
    """

    method: str
    stream: str
    seed: int
    accuracy: Matrix
    baseline: np.ndarray[Any, np.dtype[np.float64]]
    seconds: float
    restriction: Mapping[str, float] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    diverged: int | None = None
    masked: Matrix | None = None
    validation: HeldOut | None = None
    curve: AccuracyCurve | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The scores: those of the table in its order, then the further ones; NaN where unknown.

        They are computed from R, so those of runs of earlier versions are by today's definitions;
        min_acc and wc_acc are over the evaluations of `curve` too. Of a run that diverged, all are
        NaN.
        """
        lowest = None if self.curve is None else self.curve.lowest
        scores = {
            "acc": average_accuracy(self.accuracy),
            "bwt": backward_transfer(self.accuracy),
            "la": learning_accuracy(self.accuracy),
            "fwt": forward_transfer(self.accuracy, self.baseline),
            "forgetting": forgetting(self.accuracy),
            "aia": average_incremental_accuracy(self.accuracy),
            "min_acc": minimum_accuracy(self.accuracy, lowest),
            "wc_acc": worst_case_accuracy(self.accuracy, lowest),
            "acc_task_il": math.nan if self.masked is None else average_accuracy(self.masked),
        }
        return scores if self.diverged is None else dict.fromkeys(scores, math.nan)

    @property
    def on_validation(self) -> RunResult | None:
        """The run with what was measured on the validation data in place of the test data.

        Its min_acc and wc_acc are over R alone: within experiences, test data are evaluated.
        """
        if self.validation is None:
            return None
        return replace(self, **vars(self.validation), curve=None, validation=None)

    @property
    def validation_scores(self) -> dict[str, float]:
        """The same scores on the validation data, as validation_acc and so on; empty: none."""
        run = self.on_validation
        return {} if run is None else {f"validation_{k}": v for k, v in run.scores.items()}

    def to_json(self) -> str:
        """Return the run as JSON text; NaN becomes null."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["accuracy"] = _without_nan(self.accuracy)
        values["baseline"] = _without_nan(self.baseline)
        values["masked"] = None if self.masked is None else _without_nan(self.masked)
        if self.validation is None:
            del values["validation"]  # earlier versions do not know it
        else:
            held_out = vars(self.validation)
            values["validation"] = {name: _without_nan(held_out[name]) for name in held_out}
        if self.curve is None:
            del values["curve"]
        else:
            values["curve"] = self.curve.as_json()
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RunResult:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values["accuracy"] = np.array(values["accuracy"], dtype=np.float64)
        values["baseline"] = np.array(values["baseline"], dtype=np.float64)
        if values.get("masked") is not None:
            values["masked"] = np.array(values["masked"], dtype=np.float64)
        if (held_out := values.get("validation")) is not None:
            arrays = {name: np.array(held_out[name], dtype=np.float64) for name in held_out}
            values["validation"] = HeldOut(**arrays)
        if values.get("curve") is not None:
            values["curve"] = AccuracyCurve.from_json(values["curve"])
        return cls(**values)


def _without_nan(array: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    objects = array.astype(object)
    objects[np.isnan(array)] = None
    return objects.tolist()
