"""From samples in memory to Avalanche scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets
from avalanche.benchmarks.scenarios import with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import (
    ConstantSequence,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
)
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_mgem.streams.drawing import Indices

_TIMELINE = (
    "classes_in_this_experience",
    "previous_classes",
    "classes_seen_so_far",
    "future_classes",
)
_WHITE = np.float32(255)


class Pool:
    """Samples that experiences share: x float32 or uint8 [M, F] or [M, C, H, W], y int64 [M].

    values: [M, P], a sample's P values in a row, of x's dtype. labels: int64 [M]. shape: of one
    sample.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        # One array object for all who share it, so that a pickled stream has the samples once.
        self.values: NDArray[np.float32] | NDArray[np.uint8] = x.flatten(1).contiguous().numpy()
        self.labels: Indices = y.numpy()
        self.shape = tuple(x.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)


class Samples(Dataset[list[object]]):
    """The samples of one experience: N rows of a pool. Item i is [x, y], a float32 tensor and int.

    A pool of uint8 is scaled to [0, 1] as it is read: 50,000 CIFAR images are 154 MB, not 614.
    rows: int [N], in any order. order: int [P] or None, for each of a sample's P values the
    position it is taken from. labels: int [N], in place of the pool's.
    """

    def __init__(
        self,
        pool: Pool,
        rows: Indices,
        *,
        order: Indices | None = None,
        labels: Indices | None = None,
    ) -> None:
        self._pool = pool
        self._rows: list[int] = rows.tolist()
        self._order = order
        self.labels: list[int] = (pool.labels[rows] if labels is None else labels).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[object]:
        # Permuted here and not beforehand: twenty permutations of MNIST's test images are 600 MB.
        # By NumPy, which gathers so short a row in half of torch's time.
        values = self._pool.values[self._rows[index]]
        if self._order is not None:
            values = values.take(self._order)
        if values.dtype == np.uint8:
            values = np.divide(values, _WHITE, dtype=np.float32)
        return [torch.from_numpy(values.reshape(self._pool.shape)), self.labels[index]]


class Labelled(Protocol):
    """A map-style data set that tells the class labels of its items, int [N]."""

    labels: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def make_scenario(
    train: Sequence[Labelled], test: Sequence[Labelled], task_labels: bool | Sequence[int]
) -> CLScenario:
    """Make the scenario whose i-th training and test experiences hold train[i] and test[i].

    task_labels: experience i has the task label i (True), 0 (False) or task_labels[i]. Items are
    [x, y, task label]. The classes of an experience, before it, so far and after it are sorted
    lists.
    """
    if not isinstance(task_labels, Sequence):  # a flag, of numpy too
        task_labels = [i if task_labels else 0 for i in range(len(train))]
    return scenario_of(
        **{
            name: [
                task_aware(part, part.labels, ConstantSequence(task, len(part)))
                for part, task in zip(parts, task_labels, strict=True)
            ]
            for name, parts in (("train", train), ("test", test))
        }
    )


def task_aware(
    dataset: Any,
    labels: Sequence[int],
    task_labels: Sequence[int],
    *,
    transforms: TransformGroups | None = None,
) -> TaskAwareSupervisedClassificationDataset:
    """Return a data set as one of Avalanche's with these labels and task labels of its items.

    One of Avalanche's keeps its transforms, before `transforms`, and its other attributes.
    """
    attributes = [DataAttribute(labels, "targets"), TaskLabels(task_labels)]
    return TaskAwareSupervisedClassificationDataset(
        [dataset], data_attributes=attributes, transform_groups=transforms
    )


def scenario_of(**streams: Sequence[TaskAwareSupervisedClassificationDataset]) -> CLScenario:
    """Make the scenario of these streams, an experience a data set, with its classes in order."""
    scenario = with_classes_timeline(with_task_labels(benchmark_from_datasets(**streams)))
    for stream in scenario.streams.values():
        for experience in stream:
            for name in _TIMELINE:
                # Avalanche leaves sets, by which MultiHeadClassifier cannot index.
                setattr(experience, name, sorted(getattr(experience, name)))
    return scenario
