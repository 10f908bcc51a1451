"""What was evaluated of one stream, and after how much training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avalanche_mgem.evaluation.curve import AccuracyCurve
from avalanche_mgem.evaluation.matrix import Matrix


@dataclass(frozen=True)
class Moment:
    """How much had been trained.

    Args:
        tasks: tasks trained so far, the one that is being trained included.
        experiences: experiences trained so far, sub-experiences of an online stream each.
        state: differs between two moments if there was a training step between them.
    """

    tasks: int
    experiences: int
    state: int


@dataclass
class _Row:
    """The accuracies of one state of the model, by column."""

    state: int
    accuracy: dict[int, float] = field(default_factory=dict)
    masked: dict[int, float] = field(default_factory=dict)


class AccuracyRecord:
    """The accuracies on the experiences of one stream: a row for each amount of training.

    Columns are the indices of the experiences. A row is of one state of the model: what is measured
    after further training, with as many tasks or experiences trained, takes its place, and what is
    not measured again is gone from it.
    """

    def __init__(self) -> None:
        self._by_task: dict[int, _Row] = {}
        self._by_training: dict[int, _Row] = {}
        self._columns: set[int] = set()
        self._lowest: dict[int, float] = {}
        self._points: dict[tuple[int, int], dict[int, float]] = {}

    def add(
        self,
        moment: Moment,
        accuracy: Mapping[int, float],
        masked: Mapping[int, float],
        learnt: Collection[int],
    ) -> None:
        """Note the accuracies of one evaluation, by column.

        masked: the task-masked ones, NaN where there are none. learnt: the columns whose training
        is over.
        """
        keyed = ((self._by_task, moment.tasks), (self._by_training, moment.experiences))
        for rows, key in keyed:
            row = rows.get(key)
            if row is None or row.state != moment.state:
                row = rows[key] = _Row(moment.state)
            row.accuracy.update(accuracy)
            row.masked.update(masked)
        self._columns.update(accuracy)
        for column in set(learnt).intersection(accuracy):
            if not math.isnan(accuracy[column]):
                self._lowest[column] = min(self._lowest.get(column, 1.0), accuracy[column])

    @property
    def columns(self) -> list[int]:
        """All that was ever evaluated, in the order of the stream."""
        return sorted(self._columns)

    def table(
        self, rows: Sequence[int], columns: Sequence[int], *, by_task: bool, masked: bool = False
    ) -> Matrix:
        """Return the accuracies, float [rows, columns], NaN where not measured.

        rows: numbers of tasks trained, or with by_task=False of experiences trained.
        """
        kept = self._by_task if by_task else self._by_training
        empty = _Row(-1)
        values = [
            [(row.masked if masked else row.accuracy).get(column, math.nan) for column in columns]
            for row in (kept.get(key, empty) for key in rows)
        ]
        return np.array(values, dtype=np.float64).reshape(len(rows), len(columns))

    def add_point(self, iteration: int, tasks: int, accuracy: Mapping[int, float]) -> None:
        """Note the accuracies of one evaluation as a point of the curve."""
        self._points.setdefault((iteration, tasks), {}).update(accuracy)

    def curve(self, columns: Sequence[int]) -> AccuracyCurve:
        """Return the points so far."""
        iterations, trained = [key[0] for key in self._points], [key[1] for key in self._points]
        values = [
            [point.get(column, math.nan) for column in columns] for point in self._points.values()
        ]
        accuracy = np.array(values, dtype=np.float64).reshape(len(values), len(columns))
        return AccuracyCurve(iterations, trained, accuracy)

    def lowest(self, columns: Sequence[int]) -> Matrix:
        """Return the lowest accuracy on each since its training was over, NaN where none."""
        values = [self._lowest.get(column, math.nan) for column in columns]
        return np.array(values, dtype=np.float64)
