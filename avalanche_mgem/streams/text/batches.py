"""Samples of token ids, and batches of them that answer by name and by position.

Avalanche reads batches by position: `batch[0]` is the input, `batch[1]` the labels, `batch[-1]` the
task labels, and each must have `.to(device)`. Models of transformers take their input by name. So a
batch is a list of three, the first of which is a dict that can be moved; a model that takes this
dict trains under Avalanche's own strategies, replay and EWC among them, without a strategy of its
own. Plugins that do arithmetic on the input itself (GEM's memory, which joins inputs) cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_mgem.arguments import bounded_int, instance, one_of
from avalanche_mgem.streams.text.tokens import ATTENTION_MASK, INPUT_IDS

Side = Literal["right", "left"]

_BY_NAME = {"labels": 1, "task_labels": 2}


class Features(dict[str, Tensor]):
    """The input of a batch: each field int64 [B, L]. `model(**features)` is how models take it."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Features:
        """Return the same on `device`."""
        return Features(
            {name: value.to(device, non_blocking=non_blocking) for name, value in self.items()}
        )


class TextBatch(list[Any]):
    """[features, labels, task labels], each of B samples; also by name.

    batch["labels"], batch["task_labels"], and the features by their own names. `list(batch)` and
    unpacking are by position, `dict(batch)` and `**batch` by name. Where a feature is called
    "labels" too, the tokens of an answer, it is batch[0]["labels"].
    """

    def __getitem__(self, key: Any) -> Any:
        """Return a field, by position or by name."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key in _BY_NAME:
            return super().__getitem__(_BY_NAME[key])
        return super().__getitem__(0)[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys() if isinstance(key, str) else super().__contains__(key)

    def keys(self) -> list[str]:
        """Return the names of the fields."""
        return list(dict.fromkeys([*super().__getitem__(0), *_BY_NAME]))


class TokenRows(Protocol):
    """What samples are made of: `Tokens`, and others with more in a row."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The number of input tokens of each text, [N]."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Tensor]:
        """The fields of one text, each int64 [its length]."""


class TokenSamples(Dataset[list[object]]):
    """The samples of one experience. Item i is [features, label]: each feature int64 [length].

    labels: of the N texts. collate_fn: makes batches of them; Avalanche's data sets find it here.
    by_length: the shortest text first, and not in the order of tokens and labels, so that batches
    taken in order need little padding.
    """

    def __init__(
        self,
        tokens: TokenRows,
        labels: Sequence[int],
        collate_fn: PadToLongest,
        *,
        by_length: bool = False,
    ) -> None:
        if len(tokens) != len(labels):
            raise ValueError(f"got {len(tokens)} texts and {len(labels)} labels")
        self._tokens = tokens
        in_order = np.argsort(tokens.lengths, kind="stable") if by_length else range(len(labels))
        self._rows = [int(row) for row in in_order]
        self.labels = [int(labels[row]) for row in self._rows]
        self.collate_fn = collate_fn

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> list[object]:
        return [self._tokens.row(self._rows[index]), self.labels[index]]


@dataclass(frozen=True)
class PadToLongest:
    """Collates samples [features, label, task label] into a `TextBatch`, padded to the longest.

    padding: what a feature is padded with, 0 where it is not named. side: where the padding goes;
    models that generate from the end of their input want it on the left. multiple_of: lengths are
    rounded up to a multiple of this, for hardware that likes it.
    """

    padding: Mapping[str, int] = field(default_factory=dict)
    side: Side = "right"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        one_of("side", self.side, ("right", "left"))
        bounded_int("multiple_of", self.multiple_of)
        instance("padding", self.padding, Mapping, what="a number for a name")
        for name, value in self.padding.items():
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not (isinstance(name, str) and whole):
                raise ValueError(f"padding must be whole numbers by name, got {self.padding!r}")

    def __call__(self, samples: Sequence[Sequence[Any]]) -> TextBatch:
        """Return the batch of the samples; task labels are 0 where the samples have none."""
        features = [sample[0] for sample in samples]
        labels = [int(sample[1]) for sample in samples]
        tasks = [int(sample[2]) if len(sample) > 2 else 0 for sample in samples]
        padded = {name: self._padded(name, [row[name] for row in features]) for name in features[0]}
        return TextBatch([Features(padded), torch.tensor(labels), torch.tensor(tasks)])

    def _padded(self, name: str, rows: Sequence[Tensor]) -> Tensor:
        longest = max(len(row) for row in rows)
        longest += -longest % self.multiple_of
        batch = torch.full((len(rows), longest), self.padding.get(name, 0), dtype=torch.int64)
        for target, row in zip(batch, rows, strict=True):
            at = slice(0, len(row)) if self.side == "right" else slice(longest - len(row), longest)
            target[at] = row
        return batch


def padding_of(tokenizer: Any, *, side: Side | None = None) -> PadToLongest:
    """Return the collate function that pads as a tokenizer says that it would.

    By its pad_token_id, pad_token_type_id and padding_side, 0, 0 and "right" where it has none. A
    padded position has attention mask 0, so that a model can tell a pad from a real id 0.
    """
    usual = getattr(tokenizer, "padding_side", None) or "right"
    return PadToLongest(
        padding={
            INPUT_IDS: _id(tokenizer, "pad_token_id"),
            "token_type_ids": _id(tokenizer, "pad_token_type_id"),
            ATTENTION_MASK: 0,
        },
        side=cast(Side, one_of("padding_side", usual if side is None else side, get_args(Side))),
    )


def _id(tokenizer: Any, name: str) -> int:
    value = getattr(tokenizer, name, None)
    return 0 if value is None else int(value)


def padded_share(batches: Iterator[TextBatch] | Sequence[TextBatch]) -> float:
    """Return which share of the positions in batches is padding."""
    used = total = 0
    for batch in batches:
        mask = batch[0][ATTENTION_MASK]
        used, total = used + int(mask.sum()), total + mask.numel()
    return 1 - used / total
