"""Text classification tasks: the fifteen and the six orders of MIGU's paper, and what a task is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import NamedTuple
from zlib import crc32

import numpy as np

from avalanche_mgem.arguments import as_list, as_text, instance, positive_int, suggestion
from avalanche_mgem.streams.drawing import Draw, draw_balanced

# arXiv 2406.17245, table 6; 1 to 3 are its standard benchmark, 4 to 6 the long one.
TEXT_ORDERS: dict[str, tuple[str, ...]] = {
    "1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "4": (
        *("mnli", "cb", "wic", "copa", "qqp", "boolqa", "rte", "imdb"),
        *("yelp", "amazon", "sst2", "dbpedia", "agnews", "multirc", "yahoo"),
    ),
    "5": (
        *("multirc", "boolqa", "wic", "mnli", "cb", "copa", "qqp", "rte"),
        *("imdb", "sst2", "dbpedia", "agnews", "yelp", "amazon", "yahoo"),
    ),
    "6": (
        *("yelp", "amazon", "mnli", "cb", "copa", "qqp", "rte", "imdb"),
        *("sst2", "dbpedia", "agnews", "yahoo", "multirc", "boolqa", "wic"),
    ),
}


class TextSample(NamedTuple):
    """A text, or a pair of them, and its label: a position in its task's label words."""

    text: str
    label: int
    text_pair: str | None = None


@dataclass(frozen=True, eq=False)
class TextTask:
    """A text classification task in memory.

    label_words: the name of each class, in the order of the labels. prompt: what is asked of a
    text, for the text-to-text form; None for the usual one, see `verbalized`.

    Raises ValueError, naming the task, where a part is empty, mixes texts with pairs, has labels
    without a word, or tests a label that is never trained.
    """

    name: str
    label_words: tuple[str, ...]
    train: Sequence[TextSample]
    test: Sequence[TextSample]
    prompt: str | None = None

    def __post_init__(self) -> None:
        as_text("name", self.name)
        words = as_list("label_words", self.label_words, str, what="the words of the labels")
        if len(words) < 2 or len(set(words)) < len(words):
            raise ValueError(
                f"task {self.name!r} needs two or more different label words (label_words), "
                f"got {words}"
            )
        if self.prompt is not None:
            instance("prompt", self.prompt, str, what="a text or None")
        for part in ("train", "test"):
            self._check(part, getattr(self, part))
        unseen = sorted({s.label for s in self.test} - {s.label for s in self.train})
        if unseen:
            raise ValueError(
                f"task {self.name!r} tests labels that it never trains: "
                f"{[self.label_words[label] for label in unseen]}"
            )

    def _check(self, part: str, samples: Sequence[TextSample]) -> None:
        if not isinstance(samples, Sequence) or not all(map(_is_sample, samples)):
            raise ValueError(
                f"task {self.name!r}: {part} must be a list of TextSample(text, label), "
                f"got {type(samples).__name__}"
            )
        if not samples:
            raise ValueError(f"task {self.name!r} has no {part} samples")
        wrong = {s.label for s in samples} - set(range(len(self.label_words)))
        if wrong:
            raise ValueError(
                f"task {self.name!r} has {len(self.label_words)} label words, but {part} labels "
                f"{sorted(wrong)[:10]}"
            )
        if len({s.text_pair is None for s in samples}) > 1:
            raise ValueError(f"task {self.name!r}: {part} mixes single texts with pairs of texts")

    def drawn(
        self, train_per_task: int | None, test_per_task: int | None, *, seed: int = 0
    ) -> TextTask:
        """Return the task with at most so many samples, of each label as equal a number as may be.

        None: all, in their order. The draw depends on the seed and on the task's name alone: a task
        has the same samples in every order of tasks, and a smaller draw is the beginning of a
        larger one. The global random state is not touched.

        Raises ValueError for sizes that are no whole numbers >= 1, and for a training size that
        cannot hold every label.
        """
        positive_int("seed", seed, minimum=0)
        for name, size in (("train_per_task", train_per_task), ("test_per_task", test_per_task)):
            if size is not None:
                positive_int(name, size)
        n_labels = len({sample.label for sample in self.train})
        if train_per_task is not None and train_per_task < n_labels:
            raise ValueError(
                f"train_per_task={train_per_task} is less than the {n_labels} labels of "
                f"{self.name!r}: each needs a sample"
            )
        return replace(
            self,
            train=_drawn(self.train, Draw.TRAIN, train_per_task, seed, self.name),
            test=_drawn(self.test, Draw.TEST, test_per_task, seed, self.name),
        )


def text_task_names() -> tuple[str, ...]:
    """The names of the fifteen tasks, sorted."""
    return tuple(sorted(set().union(*TEXT_ORDERS.values())))


def chosen_tasks(tasks: str | int | Sequence[str | TextTask]) -> list[str | TextTask]:
    """Tasks from an order ("1" or 1), from names with commas between, or as they are.

    Raises ValueError for an unknown order, for no task, and for a task that comes twice.
    """
    is_number = isinstance(tasks, Integral) and not isinstance(tasks, bool)
    if is_number:
        tasks = str(tasks)
    if isinstance(tasks, str) and (is_number or tasks.isdecimal()) and tasks not in TEXT_ORDERS:
        raise ValueError(f"tasks: unknown order {tasks!r}; {suggestion(tasks, TEXT_ORDERS)}")
    if isinstance(tasks, str):
        tasks = TEXT_ORDERS.get(tasks) or [name.strip() for name in tasks.split(",")]
    what = "an order, names of tasks or tasks at hand"
    chosen = as_list("tasks", tasks, (str, TextTask), what=what)
    names = [each.name if isinstance(each, TextTask) else each for each in chosen]
    if not names or "" in names:
        raise ValueError(f"tasks must be one or more names of tasks, got {names}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"tasks must be different ones, got more than once: {', '.join(twice)}")
    return chosen


def _is_sample(sample: object) -> bool:
    return (
        isinstance(sample, TextSample)
        and isinstance(sample.text, str)
        and isinstance(sample.label, Integral)
        and isinstance(sample.text_pair, str | None)
    )


def _drawn(
    samples: Sequence[TextSample], draw: Draw, count: int | None, seed: int, name: str
) -> Sequence[TextSample]:
    labels = np.fromiter((sample.label for sample in samples), np.int64, len(samples))
    at_most = None if count is None else min(count, len(samples))
    rows = draw_balanced(labels, draw, at_most, seed, crc32(name.encode()))
    return [samples[int(row)] for row in rows]
