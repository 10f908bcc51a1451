"""The samples of a task that has not ended, of which its memory is made."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

from avalanche_mgem.bridge.classes import class_targets
from avalanche_mgem.bridge.collation import Collate, Sample, Transform, batches_of, view
from avalanche_mgem.bridge.fields import Batch


class Pool:
    """The samples kept of the open task.

    Of a random selection each has the key that it won its place by; of a ring, the data set and the
    position where it is read when it is needed.

    Args:
        transform: the transformations that samples are read through.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._samples: list[Sample] = []
        self._keys = np.empty(0)
        self._labels = np.empty(0, dtype=np.int64)
        self._ring: dict[tuple[int, int], Any] = {}
        self._collate: Collate = default_collate

    def __len__(self) -> int:
        return len(self._samples) or len(self._ring)

    def batches(self, parts: list[NDArray[np.int64]]) -> list[Batch]:
        """Return a batch of each part's samples, which are named by their positions."""
        samples = self._samples or [
            view(dataset, self._transform)[i] for dataset, i in self._ring.values()
        ]
        return batches_of([[samples[i] for i in part] for part in parts], self._collate)

    def labels(self) -> list[int]:
        """Return the class of each sample."""
        if not self._ring:
            return [int(label) for label in self._labels]
        datasets = {id(dataset): dataset for dataset, _ in self._ring.values()}
        labels = {key: class_targets(dataset) for key, dataset in datasets.items()}
        return [int(labels[id(dataset)][index]) for dataset, index in self._ring.values()]

    def append(self, shown: list[tuple[Any, int]], size: int, collate: Collate) -> None:
        """Keep the last `size` of the samples shown, each once."""
        for dataset, index in shown:
            place = (id(dataset), index)
            self._ring.pop(place, None)
            self._ring[place] = (dataset, index)
        for place in list(self._ring)[:-size]:
            del self._ring[place]
        if shown:
            self._collate = collate

    def best(self, size: int, balanced: bool) -> NDArray[np.int64]:
        """Positions of the `size` samples that a memory of that size would have kept, sorted."""
        if self._ring:
            return np.arange(len(self._ring))
        return _largest(self._keys, self._labels if balanced else 0 * self._labels, size)

    def merge(
        self,
        dataset: Any,
        keys: NDArray[np.float64],
        size: int,
        *,
        collate: Collate,
        balanced: bool,
        labels: NDArray[np.int64],
    ) -> None:
        """Keep the `size` samples with the largest keys, of what is here and of `dataset`.

        Keys are independent and uniform, so what is kept is a uniform sample of all that was ever
        merged; with `balanced`, of each class.
        """
        all_keys = np.concatenate([self._keys, keys])
        all_labels = np.concatenate([self._labels, labels])
        kept = _largest(all_keys, all_labels if balanced else np.zeros_like(all_labels), size)
        seen = view(dataset, self._transform)
        here = len(self._samples)
        self._samples = [self._samples[i] if i < here else seen[int(i) - here] for i in kept]
        self._keys, self._labels = all_keys[kept], all_labels[kept]
        self._collate = collate


def _largest(keys: NDArray[np.float64], labels: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Positions of the largest keys, sorted; as equal a number for each label as there can be."""
    order = np.argsort(-keys, kind="stable")
    rank_in_class = np.empty(len(keys), dtype=np.int64)
    seen: dict[int, int] = defaultdict(int)
    for position in order:
        label = int(labels[position])
        rank_in_class[position] = seen[label]
        seen[label] += 1
    # First every class's best, then every class's second best: equal shares, whatever classes hold.
    return np.sort(np.lexsort((-keys, rank_in_class))[:size])
