"""The accuracy matrix R, filled while Avalanche evaluates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks import OnlineCLExperience
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import Accuracy
from matplotlib.figure import Figure

from avalanche_mgem.arguments import flag
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.evaluation.heat_map import heat_map
from avalanche_mgem.evaluation.matrix import (
    Matrix,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)


class AccuracyMatrix(PluginMetric):
    """R and its scores, from the evaluations of a stream between the experiences.

    Evaluate the whole test stream after each training experience; for FWT also once before the
    first. After each evaluation it emits, over the tasks trained so far, `ACC`, `LA`, `BWT`,
    `Forgetting` and `FWT`, named `ACC/eval_phase/test_stream` and so on; a score that is not
    defined yet (BWT after one task, FWT without the first evaluation) is left out.

    Rows and columns are in the order in which tasks were first trained; tasks evaluated but never
    trained come last. A later evaluation with the same tasks trained takes the place of an earlier
    one, also when a task was trained again in between. The sub-experiences of an online stream
    count as the experience they were cut from.

    Args:
        heat_map: emit R as a picture too, `AccuracyMatrix/eval_phase/test_stream`; it takes about a
            tenth of a second an evaluation.
    """

    def __init__(self, *, heat_map: bool = False) -> None:
        super().__init__()
        self._heat_map = flag("heat_map", heat_map)
        self._accuracy = Accuracy()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._trained: list[int] = []  # the tasks, in the order in which they were first trained
        # by stream, by the number of tasks trained, by task
        self._values: dict[str, dict[int, dict[int, float]]] = {}
        self._accuracy.reset()

    def result(self, stream: str | None = None) -> Matrix:
        """Return R, float [T, T], of the named stream (default: the first evaluated).

        T is the number of tasks trained or evaluated; NaN where not measured.
        """
        return self._table(stream, range(1, len(self._tasks(stream)) + 1))

    def baseline(self, stream: str | None = None) -> Matrix:
        """Return the accuracies before any training, float [T]; NaN where not measured."""
        return self._table(stream, [0]).reshape(-1)

    def before_training_exp(self, strategy: Strategy) -> None:
        """Note which task is trained now."""
        task = _task_index(strategy.experience)
        if task not in self._trained:
            self._trained.append(task)

    def before_eval_exp(self, strategy: Strategy) -> None:
        """Start counting."""
        self._accuracy.reset()

    def after_eval_iteration(self, strategy: Strategy) -> None:
        """Count the right answers of a minibatch."""
        self._accuracy.update(strategy.mb_output, strategy.mb_y)

    def after_eval_exp(self, strategy: Strategy) -> None:
        """Write one entry of R."""
        experience = strategy.experience
        rows = self._values.setdefault(experience.origin_stream.name, {})
        row = rows.setdefault(len(self._trained), {})
        row[_task_index(experience)] = float(self._accuracy.result())

    def after_eval(self, strategy: Strategy) -> list[MetricValue]:
        """Emit the scores over the tasks trained so far."""
        step = strategy.clock.train_iterations
        return [
            MetricValue(self, f"{name}/eval_phase/{stream}_stream", value, step)
            for stream in sorted({exp.origin_stream.name for exp in strategy.current_eval_stream})
            for name, value in {**self._scores(stream), **self._picture(stream)}.items()
            if not (isinstance(value, float) and math.isnan(value))
        ]

    def __str__(self) -> str:
        return "AccuracyMatrix"

    def _scores(self, stream: str) -> dict[str, float]:
        count = len(self._trained)
        if count == 0:
            return {}
        done = self.result(stream)[:count, :count]
        return {
            "ACC": average_accuracy(done),
            "LA": learning_accuracy(done),
            "BWT": backward_transfer(done),
            "Forgetting": forgetting(done),
            "FWT": forward_transfer(done, self.baseline(stream)[:count]),
        }

    def _picture(self, stream: str) -> dict[str, Figure]:
        return {str(self): heat_map(self.result(stream))} if self._heat_map else {}

    def _rows(self, stream: str | None) -> dict[int, dict[int, float]]:
        if stream is None:
            stream = next(iter(self._values), "test")
        return self._values.get(stream, {})

    def _tasks(self, stream: str | None) -> list[int]:
        evaluated = {task for row in self._rows(stream).values() for task in row}
        return self._trained + sorted(evaluated.difference(self._trained))

    def _table(self, stream: str | None, rows: Sequence[int]) -> Matrix:
        known, tasks = self._rows(stream), self._tasks(stream)
        values = [[known.get(row, {}).get(task, math.nan) for task in tasks] for row in rows]
        return np.array(values, dtype=np.float64).reshape(len(rows), len(tasks))


def accuracy_matrix_metrics(*, heat_map: bool = False) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one AccuracyMatrix."""
    return [AccuracyMatrix(heat_map=heat_map)]


def _task_index(experience: Any) -> int:
    if isinstance(experience, OnlineCLExperience) and experience.origin_experience is not None:
        return int(experience.origin_experience.current_experience)
    return int(experience.current_experience)
