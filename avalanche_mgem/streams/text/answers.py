"""Samples for models that answer in words: a verbalized text, and the tokens of the label's word.

The labels of a batch stay the numbers of the classes, so that replay, class-balanced memories and
accuracies work as ever. The tokens of the answers are one more feature, "labels", padded with -100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.streams.text.batches import PadToLongest, Side, padding_of
from avalanche_mgem.streams.text.forms import Form
from avalanche_mgem.streams.text.prompts import verbalized
from avalanche_mgem.streams.text.tasks import TextSample, TextTask
from avalanche_mgem.streams.text.tokens import (
    ATTENTION_MASK,
    INPUT_IDS,
    Tokenizer,
    Tokens,
    tokenized,
)

LABELS = "labels"
IGNORED = -100  # what torch's cross entropy and transformers leave out

LabelWords = Mapping[int, str] | Mapping[int, Mapping[int, str]]

_WHOLE = 2**20  # longer than any text
_CUE = "Answer:"  # what an answer follows; how a word is cut into tokens depends on it


@dataclass(frozen=True, eq=False)
class AnsweredTokens:
    """The tokens of N texts that ask, with those of their answers.

    sources: of the texts. answers: the tokens of each label's word, int64 [its length], the eos
    token last where the tokenizer has one. labels: of the texts, positions in answers. form:
    "text-to-text" has the answer as "labels" beside the source; "causal" appends it to the source,
    and "labels" is -100 on the source.
    """

    sources: Tokens
    answers: Sequence[Tensor]
    labels: Sequence[int]
    form: Form

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each text, without its answer, [N]."""
        return self.sources.lengths

    def __len__(self) -> int:
        return len(self.sources)

    def row(self, index: int) -> dict[str, Tensor]:
        """The fields of one text, each int64 [its length]."""
        fields, answer = self.sources.row(index), self.answers[self.labels[index]]
        if self.form == "text-to-text":
            return {**fields, LABELS: answer}
        source, mask = fields[INPUT_IDS], fields[ATTENTION_MASK]
        return {
            INPUT_IDS: torch.cat([source, answer]),
            ATTENTION_MASK: torch.cat([mask, torch.ones_like(answer)]),
            LABELS: torch.cat([torch.full_like(source, IGNORED), answer]),
        }


def answered(
    task: TextTask,
    samples: Sequence[TextSample],
    tokenizer: Tokenizer,
    *,
    form: Form,
    max_length: int,
    cache_folder: Path | str | None = None,
) -> AnsweredTokens:
    """Return the tokens of the verbalized samples of a task, and of their answers.

    max_length: of the source. What is too long is cut in the text, from its end (of a pair: in the
    first text, while that is enough); the question and the cue for the answer stay, and the answer
    is never cut. tokenizer, cache_folder: see `tokenized`; with eos_token_id, answers end with it.

    Raises ValueError where `tokenized` does, and for a max_length that leaves no room for the text.
    """
    positive_int("max_length", max_length)
    texts = [verbalized(task, sample)[0] for sample in samples]

    def whole(texts: list[str]) -> Tokens:
        made = tokenized(texts, tokenizer, max_length=_WHOLE, cache_folder=cache_folder)
        return _open_ended(made, tokenizer) if form == "causal" else made

    sources = whole(texts)
    if int(sources.lengths.max()) > max_length:
        sources = _cut(task, samples, sources, whole, max_length)
    answers = [torch.tensor(answer_tokens(word, tokenizer, form=form)) for word in task.label_words]
    return AnsweredTokens(sources, answers, [sample.label for sample in samples], form)


def answer_tokens(word: str, tokenizer: Tokenizer, *, form: Form) -> list[int]:
    """Return the tokens of a label's word as an answer, with eos where the tokenizer has one.

    For "causal" these are the tokens that the word has after the cue and a space, which with many
    tokenizers are others than those of the word alone.

    Raises ValueError for a word of which the tokenizer makes no token.
    """
    if form == "causal":
        both = tokenized([_CUE, f"{_CUE} {word}"], tokenizer, max_length=_WHOLE)
        cue, whole = _ids(_open_ended(both, tokenizer))
        tokens = whole[_in_common(cue, whole) :].tolist()
    else:
        tokens = _ids(tokenized([word], tokenizer, max_length=_WHOLE))[0].tolist()
    if not tokens:
        raise ValueError(f"tokenizer makes no token of the label word {word!r}")
    eos = getattr(tokenizer, "eos_token_id", None)
    return tokens if eos is None or tokens[-1] == eos else [*tokens, eos]


def answer_padding(tokenizer: Any, *, side: Side | None = None) -> PadToLongest:
    """Return the collate function for samples with answers: on the right, "labels" with -100.

    Raises ValueError for side="left": models are trained with padding on the right, and those that
    generate from the end of their input move it themselves.
    """
    if side == "left":
        raise ValueError(
            "padding_side must be 'right' or None where a model answers in words, got 'left'; "
            "for generation the model moves the padding itself"
        )
    usual = padding_of(tokenizer, side="right")
    return replace(usual, padding={**usual.padding, LABELS: IGNORED})


def label_words_of(scenario: Any) -> LabelWords:
    """Return the word of each class of a text stream, as models that answer in words want it.

    {class: word}; where experiences differ in their task label, {task label: {class: word}}.

    Raises ValueError for another stream.
    """
    words: dict[int, dict[int, str]] = {}
    if not hasattr(scenario, "streams"):
        raise ValueError(f"scenario must be one of Avalanche's, got {type(scenario).__name__}")
    for stream in scenario.streams.values():
        for experience in stream:
            own = getattr(experience, "label_words", None)
            if own is None:
                raise ValueError(
                    "scenario must be made by text_stream: an experience has no label_words"
                )
            for task in experience.task_labels:
                words.setdefault(int(task), {}).update(own)
    return words if len(words) > 1 else next(iter(words.values()))


def _cut(
    task: TextTask,
    samples: Sequence[TextSample],
    sources: Tokens,
    whole: Callable[[list[str]], Tokens],
    max_length: int,
) -> Tokens:
    """Leave out the end of each text that is too long, but nothing of what frames it.

    whole: makes the tokens of texts, as those of the sources were made.
    """
    long = [row for row, length in enumerate(sources.lengths) if length > max_length]
    first = _frames(task, [samples[row]._replace(text="") for row in long], whole)
    empty = TextSample("", 0, None if samples[0].text_pair is None else "")
    (bare,) = _frames(task, [empty], whole)
    ids = _ids(sources)
    parts: list[Any] = [slice(0, len(row)) for row in ids]
    for row, frame in zip(long, first, strict=True):
        head, tail = _around(ids[row], frame)
        if head + tail >= max_length:  # the second text is itself too long
            head, tail = _around(ids[row], bare)
        if head + tail >= max_length:
            raise ValueError(
                f"max_length={max_length} leaves no room for a text of task {task.name!r}, whose "
                f"question and label words take {head + tail} tokens"
            )
        length = len(ids[row])
        parts[row] = np.r_[0 : max_length - tail, length - tail : length]
    return _selected(sources, parts)


def _frames(
    task: TextTask, samples: Sequence[TextSample], whole: Callable[[list[str]], Tokens]
) -> list[NDArray[np.int32]]:
    """The tokens of verbalized samples, those of each different text made once."""
    texts = [verbalized(task, sample)[0] for sample in samples]
    different = list(dict.fromkeys(texts))
    made = dict(zip(different, _ids(whole(different)), strict=True))
    return [made[text] for text in texts]


def _around(source: NDArray[np.int32], frame: NDArray[np.int32]) -> tuple[int, int]:
    """How many tokens at the start, and at the end, a source has from its frame."""
    head = _in_common(source, frame)
    tail = _in_common(source[::-1], frame[head:][::-1])
    return head, tail


def _in_common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _open_ended(tokens: Tokens, tokenizer: Tokenizer) -> Tokens:
    """All but the eos token that some tokenizers put last: here the text goes on."""
    eos = getattr(tokenizer, "eos_token_id", None)
    ends = [len(row) - int(len(row) > 1 and int(row[-1]) == eos) for row in _ids(tokens)]
    return _selected(tokens, [slice(0, end) for end in ends])


def _ids(tokens: Tokens) -> list[NDArray[np.int32]]:
    return np.split(tokens.fields[INPUT_IDS], np.cumsum(tokens.lengths, dtype=np.int64)[:-1])


def _selected(tokens: Tokens, parts: Sequence[Any]) -> Tokens:
    """The tokens of each text that its part, a slice or positions, names."""
    starts = np.cumsum(tokens.lengths, dtype=np.int64) - tokens.lengths
    rows = [
        start + np.arange(length)[part]
        for start, length, part in zip(starts, tokens.lengths, parts, strict=True)
    ]
    chosen = np.concatenate(rows)
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    return Tokens(lengths, {name: values[chosen] for name, values in tokens.fields.items()})
