"""From samples in memory to Avalanche scenarios."""

from __future__ import annotations

from collections.abc import Sequence

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


def make_scenario(
    train: Sequence[Samples], test: Sequence[Samples], task_labels: bool
) -> CLScenario:
    """Make the scenario whose i-th training and test experiences hold train[i] and test[i].

    task_labels: experience i has the task label i, instead of 0. Items are [x, y, task label]. The
    classes of an experience, before it, so far and after it are sorted lists.
    """
    datasets = {"train": _datasets(train, task_labels), "test": _datasets(test, task_labels)}
    scenario = with_classes_timeline(with_task_labels(benchmark_from_datasets(**datasets)))
    for stream in scenario.streams.values():
        for experience in stream:
            for name in _TIMELINE:
                # Avalanche leaves sets, by which MultiHeadClassifier cannot index.
                setattr(experience, name, sorted(getattr(experience, name)))
    return scenario


def _datasets(
    parts: Sequence[Samples], task_labels: bool
) -> list[TaskAwareSupervisedClassificationDataset]:
    return [
        TaskAwareSupervisedClassificationDataset(
            [part],
            data_attributes=[
                DataAttribute(part.labels, "targets"),
                TaskLabels(ConstantSequence(experience if task_labels else 0, len(part))),
            ],
        )
        for experience, part in enumerate(parts)
    ]
