"""Evaluation in the middle of experiences, which leaves training as it is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from avalanche.benchmarks import CLExperience
from avalanche.training.plugins import SupervisedPlugin

from avalanche_mgem.arguments import as_list, bounded_int
from avalanche_mgem.bridge.experiences import full_length
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.evaluation.progress import TrainingProgress
from avalanche_mgem.model.randomness import preserved_random_state

_OF_A_MINIBATCH = ("mbatch", "mb_output", "loss")  # what an evaluation leaves empty


class EvaluateEvery(SupervisedPlugin):
    """Evaluate every n iterations, to see what an evaluation after each experience does not.

    On learning something new a model may lose what it knew and win it back before the experience
    is over: the stability gap (De Lange et al., arXiv 2205.13452). With it, `AccuracyMatrix` finds
    the lowest accuracies (`MIN_ACC`, `WC_ACC`) among all these evaluations, and with `curve=True`
    shows the accuracy on each experience.

    Training is the same as without, to the bit: the random states are put back, the minibatch too.
    That is, where no plugin acts on evaluations, as early stopping and schedulers on a validation
    loss do.
    Avalanche's own `eval_every=n, peval_mode="iteration"` also serves, but its evaluations draw
    random numbers. Evaluated are the experiences whose tasks have been trained, the current one
    included; all of them where the stream has no task for each experience.

    Runs on before_training_iteration, n, 2n, ... iterations after a task began; a task's end is for
    an evaluation of your own.

    Args:
        iterations: n.
        stream: the experiences to evaluate, such as `benchmark.test_stream`.

    Attributes:
        seconds: that the evaluations took so far.

    Raises:
        ValueError: an argument of another kind; when training, an evaluation that makes the model
            grow, because it has classes that the training samples of its task lack.

    Example:
        >>> every = EvaluateEvery(10, benchmark.test_stream)
        >>> evaluator = EvaluationPlugin(AccuracyMatrix(curve=True), loggers=[logger])
        >>> strategy = Naive(model=model, optimizer=optimizer, plugins=[every], evaluator=evaluator)
    """

    seconds: float

    def __init__(self, iterations: int, stream: Iterable[Any]) -> None:
        super().__init__()
        self._every = bounded_int("iterations", iterations)
        what = "a stream of Avalanche's, or a list of its experiences"
        self._stream = as_list("stream", stream, CLExperience, what=what)
        if not self._stream:
            raise ValueError("stream must hold at least one experience, got none")
        self.seconds = 0.0
        self._progress = TrainingProgress()
        self._since = 0  # iterations since the task began

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Note which task is trained now."""
        earlier = self._progress.current
        self._progress.start(strategy)
        if self._progress.current != earlier:
            self._since = 0

    def before_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Evaluate, if it is time to."""
        if self._since and self._since % self._every == 0:
            start = time.perf_counter()
            self._evaluate(strategy)
            self.seconds += time.perf_counter() - start
        self._since += 1

    def _evaluate(self, strategy: Strategy) -> None:
        chosen = [experience for experience in self._stream if self._is_due(experience)]
        if not chosen:
            return
        before = [id(parameter) for parameter in strategy.model.parameters()]
        with preserved_random_state(), _minibatch_kept(strategy):
            strategy.eval(chosen)
        if before != [id(parameter) for parameter in strategy.model.parameters()]:
            # The optimiser would go on with the former ones.
            raise ValueError(
                "EvaluateEvery: evaluating within an experience made the model grow, because the "
                "test samples have classes that the training samples of their task lack; give a "
                "stream without them, or a head of a fixed size"
            )

    def _is_due(self, experience: Any) -> bool:
        if not self._progress.has_tasks(full_length(experience.origin_stream)):
            return True
        return int(experience.current_experience) in self._progress.trained


@contextmanager
def _minibatch_kept(strategy: Any) -> Iterator[None]:
    kept = {name: getattr(strategy, name) for name in _OF_A_MINIBATCH}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(strategy, name, value)
