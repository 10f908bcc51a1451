"""The accuracy matrix R, filled while Avalanche evaluates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from matplotlib.figure import Figure
from torch import nn

from avalanche_mgem.arguments import LARGEST, bounded_int, flag
from avalanche_mgem.bridge.experiences import classes_of, full_length, whole_experience
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.evaluation.counting import (
    RunningAccuracy,
    require_countable,
    require_trainable,
    targets_of,
)
from avalanche_mgem.evaluation.curve import AccuracyCurve
from avalanche_mgem.evaluation.heat_map import heat_map
from avalanche_mgem.evaluation.matrix import (
    Matrix,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    minimum_accuracy,
    worst_case_accuracy,
)
from avalanche_mgem.evaluation.progress import TrainingProgress
from avalanche_mgem.evaluation.record import AccuracyRecord

_OF_TASKS = ("LA", "BWT", "Forgetting", "FWT", "AIA", "MIN_ACC", "WC_ACC")
_CLASSES_SECOND = nn.CrossEntropyLoss | nn.NLLLoss


class AccuracyMatrix(PluginMetric):
    """R and its scores, from the evaluations of a stream between the experiences.

    Evaluate the whole test stream after each training experience; for FWT also once before the
    first. Every evaluation emits, named `ACC/eval_phase/test_stream` and so on:

    - `ACC`: the mean accuracy on the experiences that were evaluated now; where the task of some
      has been trained, on those.
    - `ACC_TaskIL`: the same with the answer by argmax over the task's own classes: what a
      class-incremental run scores where the task is known. NaN where the classes are not told.
    - `LA`, `BWT`, `Forgetting`, `FWT`, `AIA`, `MIN_ACC` and `WC_ACC`, over the tasks trained so
      far, see the functions of `avalanche_mgem.evaluation`. Each is NaN as long as R lacks an entry
      that it needs: BWT after one task, FWT without an evaluation before training, most where only
      some tasks are evaluated. An older value never stands for a missing one. TensorBoard shows NaN
      as a gap, and `ScalarCSVLogger` writes nan.

    Rows and columns are in the order in which tasks were first trained; tasks evaluated but never
    trained come last. A later evaluation with the same tasks trained takes the place of an earlier
    one, also when a task was trained again in between. The sub-experiences of an online stream
    count as the experience they were cut from; those of JointTraining are all trained at once.

    Some streams have no task for each experience: the training stream is blurry, or longer than the
    evaluated one, or has a single experience for several evaluated ones. R then has a row for each
    training experience and a column for each evaluated one, `ACC` and `ACC_TaskIL` are means over
    all that was evaluated now, and the other scores are NaN.

    What is counted is one class a sample, targets integer [N] with output [N, C], or one for each
    pixel or token, targets [N, ...] with output [N, C, ...]; the accuracy is then the mean over all
    elements. Anything else, such as a regression, raises ValueError in the first iteration of
    training, or of evaluation where training does not tell.

    Args:
        heat_map: emit R as a picture too, `AccuracyMatrix/eval_phase/test_stream`; it takes about a
            tenth of a second an evaluation.
        ignore_index: target that is not counted; None: the one that the strategy's criterion
            ignores, as CrossEntropyLoss does -100.
        class_dim: the dimension of the output that holds the classes: 1, as for CrossEntropyLoss,
            or -1, for logits [N, L, C] of L tokens, as models of transformers return them. None: 1;
            where L = C in the first minibatch and the criterion does not tell, ValueError.
        curve: keep the accuracy on each experience of every evaluation, and emit it as
            `ACC_Exp/eval_phase/test_stream/Exp000` and so on; for evaluations in the middle of an
            experience, see `EvaluateEvery`.
    """

    def __init__(
        self,
        *,
        heat_map: bool = False,
        ignore_index: int | None = None,
        class_dim: int | None = None,
        curve: bool = False,
    ) -> None:
        super().__init__()
        self._heat_map, self._keeps_curve = flag("heat_map", heat_map), flag("curve", curve)
        if ignore_index is not None:
            ignore_index = bounded_int("ignore_index", ignore_index, minimum=-LARGEST)
        if class_dim is not None:
            class_dim = bounded_int("class_dim", class_dim, minimum=-1)
            if class_dim not in (1, -1):
                raise ValueError(f"class_dim must be 1, -1 or None, got {class_dim!r}")
        self._ignore_index, self._given_dim = ignore_index, class_dim
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._progress = TrainingProgress()
        self._records: dict[str, AccuracyRecord] = {}  # by stream
        self._lengths: dict[str, int | None] = {}  # of the evaluated streams
        # of the current evaluation, by stream and experience
        self._now: dict[str, dict[int, RunningAccuracy]] = {}
        self._running = RunningAccuracy(None)
        self._looked = False  # whether an iteration of this experience has been looked at
        self._class_dim = self._given_dim

    def result(self, stream: str | None = None) -> Matrix:
        """Return R, float [T, T], of the named stream (default: the first evaluated).

        T is the number of tasks trained or evaluated; NaN where not measured. Without a task for
        each experience it is [training experiences so far, evaluated experiences].
        """
        return self._matrix(stream, masked=False)

    def task_masked(self, stream: str | None = None) -> Matrix:
        """Return R with the answers by argmax over each task's own classes; as `result`."""
        return self._matrix(stream, masked=True)

    def baseline(self, stream: str | None = None) -> Matrix:
        """Return the accuracies before any training, float [T]; NaN where not measured."""
        record, columns, by_task = self._of(stream)
        return record.table([0], columns, by_task=by_task).reshape(-1)

    def lowest(self, stream: str | None = None) -> Matrix:
        """Return the lowest accuracy on each task since its training was over, float [T].

        Evaluations in the middle of an experience count too; NaN where there was none.
        """
        record, columns, _ = self._of(stream)
        return record.lowest(columns)

    def curve(self, stream: str | None = None) -> AccuracyCurve:
        """Return the accuracies of all evaluations; there are none without `curve=True`."""
        record, columns, _ = self._of(stream)
        return record.curve(columns)

    def before_training_exp(self, strategy: Strategy) -> None:
        """Note which task is trained now."""
        self._progress.start(strategy)
        self._looked = False

    def after_forward(self, strategy: Strategy) -> None:
        """Refuse what cannot be counted, in the first iteration of an experience."""
        if not self._looked:
            require_trainable(str(self), strategy, class_dim=self._dimension(strategy))
            self._looked = True

    def after_training_iteration(self, strategy: Strategy) -> None:
        """Note that the model is another one now."""
        self._progress.step()

    def before_eval(self, strategy: Strategy) -> None:
        """Start an evaluation."""
        self._now = {}

    def before_eval_exp(self, strategy: Strategy) -> None:
        """Start counting, or go on where another part of the experience was evaluated."""
        experience = strategy.experience
        stream = experience.origin_stream.name
        whole = whole_experience(experience)
        whole = experience if whole is None else whole
        column = int(whole.current_experience)
        self._lengths[stream] = full_length(whole.origin_stream)
        classes = classes_of(experience)
        if classes is not None:  # a small test set may lack some
            classes |= self._progress.classes(column)
        columns = self._now.setdefault(stream, {})
        self._running = columns.setdefault(column, RunningAccuracy(classes))

    def after_eval_iteration(self, strategy: Strategy) -> None:
        """Count the right answers of a minibatch."""
        output, targets = strategy.mb_output, targets_of(strategy)
        require_countable(str(self), output, targets, class_dim=self._dimension(strategy))
        if output.ndim > 2 and self._class_dim is None:
            self._class_dim = 1  # no later minibatch may take it back, whatever its sizes
        ignored = self._ignore_index
        if ignored is None:
            ignored = getattr(_criterion(strategy), "ignore_index", None)
        self._running.update(output, targets, class_dim=self._class_dim or 1, ignore_index=ignored)

    def after_eval(self, strategy: Strategy) -> list[MetricValue]:
        """Write what was measured into R, and emit the scores."""
        moment, step = self._progress.moment, strategy.clock.train_iterations
        for stream, columns in self._now.items():
            record = self._records.setdefault(stream, AccuracyRecord())
            accuracy = {column: running.accuracy for column, running in columns.items()}
            masked = {column: running.masked for column, running in columns.items()}
            record.add(moment, accuracy, masked, self._progress.learnt)
            if self._keeps_curve:
                record.add_point(step, moment.tasks, accuracy)
        return [
            MetricValue(self, f"{name}/eval_phase/{stream}_stream", value, step)
            for stream in sorted(self._now)
            for name, value in {**self._scores(stream), **self._picture(stream)}.items()
        ] + self._points(step)

    def __str__(self) -> str:
        return "AccuracyMatrix"

    def _dimension(self, strategy: Strategy) -> int | None:
        """Return which dimension of the output holds the classes; None: its sizes have to tell."""
        if self._class_dim is None and isinstance(_criterion(strategy), _CLASSES_SECOND):
            return 1
        return self._class_dim

    def _scores(self, stream: str) -> dict[str, float]:
        now, (_, columns, by_task) = self._now[stream], self._of(stream)
        count = len(self._progress.trained) if by_task else 0
        counted = [c for c in columns[:count] if c in now] or [c for c in columns if c in now]
        scores = {
            "ACC": float(np.mean([now[column].accuracy for column in counted])),
            "ACC_TaskIL": float(np.mean([now[column].masked for column in counted])),
        }
        if count == 0:
            return {**scores, **dict.fromkeys(_OF_TASKS, math.nan)}
        done, lowest = self.result(stream)[:count, :count], self.lowest(stream)[:count]
        values = (
            learning_accuracy(done),
            backward_transfer(done),
            forgetting(done),
            forward_transfer(done, self.baseline(stream)[:count]),
            average_incremental_accuracy(done),
            minimum_accuracy(done, lowest),
            worst_case_accuracy(done, lowest),
        )
        return {**scores, **dict(zip(_OF_TASKS, values, strict=True))}

    def _points(self, step: int) -> list[MetricValue]:
        """Return the accuracy on each experience of the current evaluation, where it is kept."""
        return [
            MetricValue(
                self, f"ACC_Exp/eval_phase/{stream}_stream/Exp{column:03d}", running.accuracy, step
            )
            for stream, columns in sorted(self._now.items())
            for column, running in sorted(columns.items())
            if self._keeps_curve
        ]

    def _picture(self, stream: str) -> dict[str, Figure]:
        return {str(self): heat_map(self.result(stream))} if self._heat_map else {}

    def _matrix(self, stream: str | None, *, masked: bool) -> Matrix:
        record, columns, by_task = self._of(stream)
        count = len(columns) if by_task else self._progress.moment.experiences
        return record.table(range(1, count + 1), columns, by_task=by_task, masked=masked)

    def _of(self, stream: str | None) -> tuple[AccuracyRecord, list[int], bool]:
        """Return the record of a stream, its columns, and whether these are tasks."""
        if stream is None:
            stream = next(iter(self._records), "test")
        record = self._records.get(stream, AccuracyRecord())
        by_task = self._progress.has_tasks(self._lengths.get(stream))
        first = self._progress.trained if by_task else []
        return record, [*first, *(c for c in record.columns if c not in first)], by_task


def accuracy_matrix_metrics(
    *,
    heat_map: bool = False,
    ignore_index: int | None = None,
    class_dim: int | None = None,
    curve: bool = False,
) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one AccuracyMatrix."""
    return [
        AccuracyMatrix(
            heat_map=heat_map, ignore_index=ignore_index, class_dim=class_dim, curve=curve
        )
    ]


def _criterion(strategy: Strategy) -> Any:
    return getattr(strategy, "_criterion", None)
