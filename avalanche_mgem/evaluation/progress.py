"""What has been trained so far, as far as it decides what an evaluation means."""

from __future__ import annotations

from avalanche_mgem.bridge.experiences import (
    classes_of,
    full_length,
    trained_together,
    whole_experience,
)
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.evaluation.record import Moment


class TrainingProgress:
    """The tasks trained so far, the experiences, and how often the model was changed.

    A task is the index of an experience of the training stream; the evaluated experience with that
    index has its test samples, where the streams have tasks at all.

    Attributes:
        trained: the tasks, in the order in which they were first trained.
        current: the tasks that are, or were last, trained on; several in joint training, none where
            the experience is of no single one.
    """

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.current: list[int] = []
        self._experiences = 0
        self._state = 0
        self._blurry = False
        self._length: int | None = None  # of the training stream
        self._classes: dict[int, frozenset[int]] = {}

    @property
    def moment(self) -> Moment:
        """How much has been trained."""
        return Moment(len(self.trained), self._experiences, self._state)

    @property
    def learnt(self) -> set[int]:
        """The tasks whose training is over."""
        return set(self.trained).difference(self.current)

    def start(self, strategy: Strategy) -> None:
        """Note the experiences that are trained from now on."""
        self._experiences += 1
        self._state += 1
        self.current = []
        for experience in trained_together(strategy):
            whole = whole_experience(experience)
            if whole is None:
                self._blurry = True
                continue
            task = int(whole.current_experience)
            self.current.append(task)
            if task not in self.trained:
                self.trained.append(task)
            self._length = full_length(whole.origin_stream)
            if task not in self._classes:
                self._classes[task] = classes_of(whole) or frozenset()

    def step(self) -> None:
        """Note that the model is another one now."""
        self._state += 1

    def classes(self, task: int) -> frozenset[int]:
        """Return the classes that a task was trained on, as far as they were told."""
        return self._classes.get(task, frozenset())

    def has_tasks(self, length: int | None) -> bool:
        """Tell whether each experience of a stream of that length is the test of one task.

        Not of a blurry training stream, nor where there are fewer experiences to evaluate than to
        train, nor where all of several are trained as one.
        """
        if self._blurry:
            return False
        if length is None or self._length is None:
            return length is None or all(task < length for task in self.trained)
        return self._length == length or 1 < self._length < length
