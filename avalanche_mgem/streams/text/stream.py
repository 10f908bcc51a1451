"""A stream of text classification tasks, from a folder or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario

from avalanche_mgem.arguments import as_path, flag, instance, one_of
from avalanche_mgem.streams.scenario import make_scenario
from avalanche_mgem.streams.text.answers import (
    answer_padding,
    answered,
)
from avalanche_mgem.streams.text.batches import (
    Side,
    TokenRows,
    TokenSamples,
    padding_of,
)
from avalanche_mgem.streams.text.files import read_text_task
from avalanche_mgem.streams.text.forms import FORMS, Form
from avalanche_mgem.streams.text.hub import HUB_TASKS, HubTask, read_hub_task
from avalanche_mgem.streams.text.tasks import (
    TextSample,
    TextTask,
    chosen_tasks,
)
from avalanche_mgem.streams.text.tokens import Tokenizer, check_tokenizing, tokenized


def read_text_tasks(
    tasks: str | int | Sequence[str | TextTask],
    *,
    folder: Path | str | None = None,
    hub_tasks: Mapping[str, HubTask] = HUB_TASKS,
) -> list[TextTask]:
    """Return the tasks of an order ("1" to "6"), or those named, in that order.

    tasks: an order, names with commas between, or a sequence of names and of tasks at hand. folder:
    where the named ones lie, see `read_text_task`; None reads them from the hub, see
    `read_hub_task` with the table hub_tasks.

    Raises ValueError for names that are unknown or come twice, and where those functions do.
    """
    if folder is not None:
        as_path("folder", folder)
    instance("hub_tasks", hub_tasks, Mapping, what="a mapping of names to HubTask")
    return [_read(each, folder, hub_tasks) for each in chosen_tasks(tasks)]


def text_stream(
    tasks: str | int | Sequence[str | TextTask],
    *,
    tokenizer: Tokenizer,
    folder: Path | str | None = None,
    max_length: int = 128,
    train_per_task: int | None = None,
    test_per_task: int | None = None,
    seed: int = 0,
    task_labels: bool = True,
    shared_labels: bool = False,
    cache_folder: Path | str | None = None,
    padding_side: Side | None = None,
    hub_tasks: Mapping[str, HubTask] = HUB_TASKS,
    form: Form = "classification",
) -> CLScenario:
    """A stream with a training and a test experience for each task.

    tasks, folder, hub_tasks: which and from where, see `read_text_tasks`. tokenizer, max_length,
    cache_folder: see `tokenized`. train_per_task, test_per_task, seed: at most so many samples of a
    task, balanced over its labels, see `TextTask.drawn`.

    task_labels: experience i has the task label i instead of 0, and each task's labels count from 0
    (a head for each task); without, labels are those of one joint space, task after task.
    shared_labels: labels are those of one joint space in which tasks share the label words that
    they have in common ("positive" of reviews of goods and of places), with either task_labels.

    Samples are [features, label, task label], each feature int64 [length]; batches are `TextBatch`,
    padded to the longest of the batch as the tokenizer pads (padding_side: None is its own). Test
    sets are sorted by length; `LengthBuckets` does for training what can be done. An experience has
    its `task_name`, and `label_words`: the word of each of its labels.

    form: "text-to-text" and "causal" are for models that answer in words: the input is the
    verbalized sample, and a feature "labels" has the tokens of the answer, see `answered`. The
    labels stay the numbers of the classes. max_length is that of the input without the answer.

    Raises ValueError for what these functions refuse, and ImportError where the hub is to be read
    and `datasets` is not installed.
    """
    one_of("form", form, FORMS)
    flag("task_labels", task_labels)
    flag("shared_labels", shared_labels)
    max_length = check_tokenizing(tokenizer, max_length, cache_folder)
    read = read_text_tasks(tasks, folder=folder, hub_tasks=hub_tasks)
    drawn = [task.drawn(train_per_task, test_per_task, seed=seed) for task in read]
    classes = _classes(drawn, joint=shared_labels or not task_labels, shared=shared_labels)
    pads = padding_of if form == "classification" else answer_padding
    collate = pads(tokenizer, side=padding_side)
    settings: dict[str, Any] = {"max_length": max_length, "cache_folder": cache_folder}

    def samples(part: str) -> list[Any]:
        made = []
        for task, own in zip(drawn, classes, strict=True):
            rows: Sequence[TextSample] = getattr(task, part)
            tokens: TokenRows = (
                tokenized(_texts(rows), tokenizer, **settings)
                if form == "classification"
                else answered(task, rows, tokenizer, form=form, **settings)
            )
            labels = [own[sample.label] for sample in rows]
            made.append(TokenSamples(tokens, labels, collate, by_length=part == "test"))
        return made

    scenario = make_scenario(samples("train"), samples("test"), task_labels)
    for stream in scenario.streams.values():
        for experience, task, own in zip(stream, drawn, classes, strict=True):
            experience.task_name = task.name
            experience.label_words = dict(zip(own, task.label_words, strict=True))
    return scenario


def _read(
    task: str | TextTask, folder: Path | str | None, hub_tasks: Mapping[str, HubTask]
) -> TextTask:
    if isinstance(task, TextTask):
        return task
    if folder is None:
        return read_hub_task(task, table=hub_tasks)
    return read_text_task(folder, task)


def _texts(samples: Sequence[TextSample]) -> list[str] | list[tuple[str, str]]:
    if samples[0].text_pair is None:
        return [sample.text for sample in samples]
    return [(sample.text, sample.text_pair or "") for sample in samples]


def _classes(tasks: Sequence[TextTask], *, joint: bool, shared: bool) -> list[list[int]]:
    """For each task the class of each of its labels."""
    if not joint:
        return [list(range(len(task.label_words))) for task in tasks]
    number: dict[tuple[str, str], int] = {}
    return [
        [number.setdefault(("" if shared else task.name, word), len(number)) for word in words]
        for task in tasks
        for words in [task.label_words]
    ]
