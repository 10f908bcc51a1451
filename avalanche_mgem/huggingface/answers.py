"""Answers in words as scores of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_mgem.streams.text.answers import IGNORED, LabelWords, answer_tokens
from avalanche_mgem.streams.text.forms import Form

_ANY_TASK = -1

TaskLabels = Tensor | int | None


def normalized(text: str) -> str:
    """Return the text in lower case, with single spaces and none at its ends."""
    return " ".join(text.lower().split())


def left_aligned(values: Tensor, wanted: Tensor, padding: int) -> Tensor:
    """Return the wanted values of each row [B, L], in their order, padded on the right [B, W]."""
    width = int(wanted.sum(1).max()) if len(wanted) else 0
    order = torch.argsort((~wanted).to(torch.int8), dim=1, stable=True)[:, :width]
    return values.gather(1, order).masked_fill(~wanted.gather(1, order), padding)


class AnswerScores:
    """Knows the words that are right, as texts and as tokens, and gives answers their scores.

    Scores are float32 [B, C + 1]: 1 at the class that the answer names, the last column where it
    names none. C is one more than the largest class.

    label_words: {class: word}, or {task label: {class: word}}. form: how the tokenizer is asked.

    Raises:
        ValueError: label_words is of another form, a word of which the tokenizer makes nothing or
            the same as of another, or a tokenizer that cannot decode.
    """

    def __init__(self, tokenizer: Any, label_words: LabelWords, *, form: Form) -> None:
        if not hasattr(tokenizer, "batch_decode"):
            raise ValueError(
                "tokenizer must have batch_decode, as those of transformers have, "
                f"got {type(tokenizer).__name__}"
            )
        by_task = words_by_task(label_words)
        rows = [(task, number, word) for task in by_task for number, word in by_task[task].items()]
        words = list(dict.fromkeys(word for _, _, word in rows))
        tokens = {word: answer_tokens(word, tokenizer, form=form) for word in words}
        decoded = tokenizer.batch_decode(list(tokens.values()), skip_special_tokens=True)
        texts = dict(zip(words, map(normalized, decoded), strict=True))
        self._classes = {task: _classes(own, texts) for task, own in by_task.items()}
        self.by_task = _ANY_TASK not in by_task
        self.n_classes = 1 + max(number for _, number, _ in rows)
        self.longest = max(map(len, tokens.values()))
        table = torch.full((len(rows), self.longest), IGNORED)
        for target, (_, _, word) in zip(table, rows, strict=True):
            target[: len(tokens[word])] = torch.tensor(tokens[word])
        self._table = table
        self._tasks = torch.tensor([task for task, _, _ in rows])
        self._numbers = torch.tensor([number for _, number, _ in rows])

    def of_texts(self, texts: Sequence[str], task_labels: TaskLabels) -> Tensor:
        """Return the scores of answers as texts, on the CPU.

        Raises:
            ValueError: words differ by task, and there is no task label, or an unknown one.
        """
        tasks = self._labels(len(texts), task_labels).tolist()
        scores = torch.zeros(len(texts), self.n_classes + 1)
        for row, text, task in zip(scores, texts, tasks, strict=True):
            if task not in self._classes:
                known = ", ".join(map(str, self._classes))
                raise ValueError(f"label_words has no words for the task label {task}: has {known}")
            row[self._classes[task].get(normalized(text), self.n_classes)] = 1
        return scores

    def of_tokens(
        self, predicted: Tensor, targets: Tensor, rows: Tensor, answers: Tensor, tasks: TaskLabels
    ) -> Tensor:
        """Return the scores of answers given token by token, each after the right ones before it.

        An answer is right where all its tokens are. predicted, targets, rows: the N tokens, what
        they should be, and their rows in the batch, [N]. answers: the right tokens [B, T], padded
        on the right with -100.
        """
        self._move(answers.device)
        wrong = torch.zeros(len(answers), device=answers.device)
        wrong.index_add_(0, rows, (predicted != targets).float())
        width = max(answers.shape[1], self.longest)
        one, other = (
            nn.functional.pad(each, (0, width - each.shape[1]), value=IGNORED)
            for each in (answers, self._table)
        )
        named = (one[:, None] == other[None]).all(-1)  # [B, words]
        labels = self._labels(len(answers), tasks).to(answers.device)
        named &= (labels[:, None] == self._tasks) & (wrong == 0)[:, None]
        scores = torch.zeros(len(answers), self.n_classes + 1, device=answers.device)
        scores.index_add_(1, self._numbers, named.float())
        scores[:, -1] = 1 - scores.sum(1).clamp(max=1)
        return scores

    def _move(self, device: torch.device) -> None:
        # No buffers of a module: a wrapper with the model as its only child is seen through.
        if self._table.device != device:
            self._table, self._tasks, self._numbers = (
                each.to(device) for each in (self._table, self._tasks, self._numbers)
            )

    def _labels(self, count: int, task_labels: TaskLabels) -> Tensor:
        if not self.by_task:
            return torch.full((count,), _ANY_TASK)
        if task_labels is None:
            raise ValueError("label_words differ by task: the task labels are needed, got None")
        if isinstance(task_labels, int):
            return torch.full((count,), task_labels)
        return task_labels


def words_by_task(label_words: LabelWords) -> dict[int, dict[int, str]]:
    """Return {task label: {class: word}}, the task label -1 where the words are those of all.

    Raises ValueError for label_words of another form.
    """
    words: Any = label_words
    if isinstance(words, Mapping) and words:
        if all(isinstance(own, Mapping) and own for own in words.values()):
            made = {task: dict(own) for task, own in words.items()}
        else:
            made = {_ANY_TASK: dict(words)}
        pairs = [pair for own in made.values() for pair in own.items()]
        if all(isinstance(task, Integral) for task in made) and all(
            isinstance(n, int) and n >= 0 and isinstance(word, str) for n, word in pairs
        ):
            return {int(task): own for task, own in made.items()}
    raise ValueError(
        "label_words must be {class: word} or {task label: {class: word}}, classes whole numbers "
        f">= 0, got {label_words!r}; label_words_of(scenario) makes it"
    )


def _classes(words: Mapping[int, str], texts: Mapping[str, str]) -> dict[str, int]:
    """The class of each text that an answer may be."""
    classes: dict[str, int] = {}
    for number, word in words.items():
        text = texts[word]
        if not text:
            raise ValueError(f"tokenizer knows no token of the label word {word!r}")
        if text in classes:
            raise ValueError(
                f"label_words: classes {classes[text]} and {number} have the same answer {text!r}; "
                "tasks that share words need shared_labels=True or task_labels=True in text_stream"
            )
        classes[text] = number
    return classes
