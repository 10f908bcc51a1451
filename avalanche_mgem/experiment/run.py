"""One method on one stream with one seed."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from avalanche.logging import TensorboardLogger
from avalanche.models import DynamicModule
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from numpy.typing import NDArray
from torch import nn

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.evaluation import (
    AccuracyCurve,
    AccuracyMatrix,
    DecisionMetric,
    DistanceMetric,
    EvaluateEvery,
    GatingMetric,
    RestrictionMetric,
    ScalarCSVLogger,
)
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.experiment.divergence import Divergence
from avalanche_mgem.experiment.resuming import RunCheckpoints, RunRecord
from avalanche_mgem.huggingface.generation import CausalAnswers, TextToText
from avalanche_mgem.huggingface.orthogonality import OrthogonalityMetric
from avalanche_mgem.model.randomness import preserved_random_state
from avalanche_mgem.results.result import HeldOut, RunResult
from avalanche_mgem.streams.validation import VALIDATION

_LOG = logging.getLogger(__name__)

Progress = Callable[[float], None]  # the share of the run that is done, in [0, 1]


def run(
    specification: RunSpecification,
    *,
    tensorboard: Path | None = None,
    metrics_csv: Path | None = None,
    checkpoint: Path | None = None,
    tests: bool = True,
    progress: Progress = lambda _: None,
) -> RunResult:
    """Train the method on every experience in turn and evaluate after each, or more often.

    A method of the whole stream is trained once and evaluated after that: R has its last row only.

    Unseen experiences are evaluated too (for FWT), unless the model has heads that grow: evaluating
    those would change the model. The evaluation draws no random number that training would see.
    Validation data that are held out of training are evaluated as the test data are.

    A run whose loss, weights or outputs become NaN or Inf ends in that experience, without an
    error: the result names it, and R is NaN from its row on.

    With a checkpoint, the run is saved after each experience but the last, and resumes from a file
    that is there; on a CPU the result is that of a run without a stop, to the bit but for seconds.

    Args:
        specification: what to run.
        tensorboard: folder of the TensorBoard log; None: none is written.
        metrics_csv: file of the scalar metrics; None: none is written.
        checkpoint: file to resume from and to save to; None: nothing is saved. It stays there.
        tests: evaluate the test data. False: those held out alone; R of the test data is NaN.
        progress: called after each evaluation.

    Raises:
        CheckpointError: the checkpoint is damaged or of another run; remove it and start over.
    """
    logs = [path for path in (tensorboard, metrics_csv) if path is not None]
    checkpoints = RunCheckpoints(checkpoint, _name(specification), logs)
    with (
        quiet_avalanche(),
        preserved_random_state(),
        _open_loggers(tensorboard, metrics_csv) as loggers,
    ):
        return _run(specification, loggers, progress, checkpoints, tests)


@contextmanager
def quiet_avalanche() -> Iterator[None]:
    """Silence what Avalanche's code is told of removals; no user could act on it."""
    with warnings.catch_warnings():
        tell = warnings.showwarning

        def tell_others(message: Any, category: Any, filename: str, *rest: Any) -> None:
            theirs = f"{os.sep}avalanche{os.sep}" in filename
            removal = issubclass(category, DeprecationWarning) or "is deprecated" in str(message)
            if not (theirs and removal):
                tell(message, category, filename, *rest)

        # Not by a filter: Avalanche puts its own in front at every call.
        warnings.showwarning = tell_others  # type: ignore[assignment]
        yield


class WholeStreamAccuracy(AccuracyMatrix):
    """R of a training on the whole stream at once: the last row, NaN above.

    So ACC is defined, and what is said of tasks in turn is NaN: there was no order to learn in.
    """

    def before_training_exp(self, strategy: Strategy) -> None:
        """Note that every task is trained now; Avalanche's JointTraining names the first alone."""
        for experience in strategy.experience.origin_stream:
            super().before_training_exp(SimpleNamespace(experience=experience))


class SilentLogger:
    """A logger that logs nothing: without any, EvaluationPlugin warns."""

    def log_metrics(self, metric_values: object) -> None:
        """Do nothing."""


@contextmanager
def _open_loggers(tensorboard: Path | None, metrics_csv: Path | None) -> Iterator[list[Any]]:
    loggers: list[Any] = [ScalarCSVLogger(metrics_csv)] if metrics_csv else []
    board = TensorboardLogger(tensorboard) if tensorboard else None
    try:
        yield [*loggers, board] if board else loggers or [SilentLogger()]
    finally:
        if board:
            board.writer.close()  # else the last events are written when the process ends


def _run(
    specification: RunSpecification,
    loggers: list[Any],
    progress: Progress,
    checkpoints: RunCheckpoints,
    tests: bool,
) -> RunResult:
    RNGManager.set_random_seeds(specification.seed)
    scenario = specification.scenario()
    whole = specification.method.whole_stream
    curve = specification.training.eval_every is not None
    accuracy = (WholeStreamAccuracy if whole else AccuracyMatrix)(curve=curve)
    restriction = RestrictionMetric(modules=True, histograms=True)
    gating, distance = GatingMetric(), DistanceMetric(from_start=False)
    orthogonality, decisions = OrthogonalityMetric(), DecisionMetric()
    others = gating, distance, orthogonality, decisions
    divergence = Divergence()  # the last, so that the others have seen all when it ends a training
    record = RunRecord(specification.key)
    metrics = accuracy, restriction, *others, record, divergence
    evaluator = EvaluationPlugin(*metrics, loggers=loggers)
    strategy = build_strategy(specification, scenario, evaluator)
    held_out = specification.training.validation > 0
    evaluated = [scenario.test_stream] if tests else []
    evaluated += [scenario.validation_stream] if held_out else []
    run_of, device = _name(specification), specification.training.device
    _LOG.info("%s: %d experiences on %s", run_of, len(scenario.train_stream), device)
    watch = _Watch(record, divergence, checkpoints, progress)
    diverged = _train(strategy, scenario, evaluated, whole, watch)
    seconds = record.seconds - sum(
        each.seconds for each in strategy.plugins if isinstance(each, EvaluateEvery)
    )
    _LOG.info("%s: %.1f s of training", run_of, seconds)
    size = len(scenario.train_stream)
    told = {name: value for name, value in restriction.result().items() if math.isfinite(value)}
    timings = {name: told.pop(name) for name in list(told) if name.startswith("Seconds_")}
    return RunResult(
        method=specification.method.name,
        stream=specification.stream_name,
        seed=specification.seed,
        **_measured(accuracy, size, diverged, tests),
        seconds=seconds,
        restriction=told,
        timings=timings,
        configuration=specification.description(len(scenario.train_stream)),
        versions=specification.versions,
        metrics=_means(orthogonality, gating, distance, decisions),
        diverged=diverged,
        validation=_on(accuracy, VALIDATION, size, diverged) if held_out else None,
        curve=_curve(accuracy, size, diverged) if curve else None,
    )


def _name(specification: RunSpecification) -> str:
    return f"{specification.method.name}, seed {specification.seed}"


def _measured(
    accuracy: AccuracyMatrix, size: int, diverged: int | None, tests: bool
) -> dict[str, Any]:
    """Return what was measured on the test data."""
    if tests:
        return vars(_on(accuracy, "test", size, diverged))
    return {"accuracy": np.full((size, size), math.nan), "baseline": np.full(size, math.nan)}


def _on(accuracy: AccuracyMatrix, stream: str, size: int, diverged: int | None) -> HeldOut:
    return HeldOut(
        accuracy=_cut(accuracy.result(stream), size, diverged),
        baseline=_cut(accuracy.baseline(stream), size, None if diverged is None else size),
        masked=_cut(accuracy.task_masked(stream), size, diverged),
    )


def _curve(accuracy: AccuracyMatrix, size: int, diverged: int | None) -> AccuracyCurve:
    curve = accuracy.curve("test")
    return curve if diverged is None else curve.up_to(diverged, size)


def _cut(values: NDArray[np.float64], size: int, diverged: int | None) -> NDArray[np.float64]:
    """Return accuracies of a run that diverged for all `size` experiences, NaN from there on."""
    if diverged is None:
        return values
    whole = np.full((size,) * values.ndim, math.nan)
    known = values[:diverged]
    whole[tuple(slice(length) for length in known.shape)] = known
    return whole


def _means(orthogonality: OrthogonalityMetric, *others: Any) -> dict[str, float]:
    """What the metrics say of the run; of O-LoRA's penalty, what they say of the last experience.

    JSON has no numbers for the weights of a run that diverged.
    """
    penalty = orthogonality.result()
    means = {} if penalty is None else {"Orthogonality_Penalty": penalty}
    for metric in others:
        means |= metric.result()
    return {name: value for name, value in means.items() if math.isfinite(value)}


@dataclass(frozen=True)
class _Watch:
    """What a training is watched by: `record` and `divergence` are metrics of its strategy."""

    record: RunRecord
    divergence: Divergence
    checkpoints: RunCheckpoints
    progress: Progress


def _train(
    strategy: Strategy,
    scenario: Any,
    evaluated: Sequence[Any],
    whole_stream: bool,
    watch: _Watch,
) -> int | None:
    """Train and evaluate; return the experience in which the training diverged, if it did."""
    fixed_heads = not any(map(_grows, strategy.model.modules()))
    stream = scenario.train_stream
    parts = [stream] if whole_stream else list(stream)
    steps = len(parts) + 1
    if not fixed_heads:
        _LOG.info("the heads grow: an experience is evaluated once it has been trained (no FWT)")
    start = watch.checkpoints.resume(strategy, scenario, watch.record)
    if fixed_heads and start == 0:
        _evaluate(strategy, evaluated)
    watch.progress((start + 1) / steps)
    for index, part in enumerate(parts[start:], start):
        _train_part(strategy, part, watch)
        if not watch.divergence.found:
            all_seen = fixed_heads or whole_stream
            _evaluate(strategy, [each if all_seen else each[: index + 1] for each in evaluated])
        if watch.divergence.found:
            watch.progress(1.0)
            return index
        if index + 1 < len(parts):
            watch.checkpoints.save(strategy, scenario, watch.record)
        watch.progress((index + 2) / steps)
    return None


def _train_part(strategy: Strategy, part: Any, watch: _Watch) -> None:
    """Train on one experience, and note the time and whether it diverged."""
    watch.divergence.start(strategy)
    start = time.perf_counter()
    try:
        strategy.train(part)
    except Exception as error:
        if not watch.divergence.explains(error, strategy):
            raise
    watch.record.seconds += time.perf_counter() - start


def _grows(module: nn.Module) -> bool:
    """Whether evaluating a task before it is trained would change the module."""
    # What answers in words is told the task labels as a head a task is, but has no heads.
    return isinstance(module, DynamicModule) and not isinstance(module, TextToText | CausalAnswers)


def _evaluate(strategy: Strategy, streams: Sequence[Any]) -> None:
    for stream in streams:
        with preserved_random_state():
            strategy.eval(stream)
