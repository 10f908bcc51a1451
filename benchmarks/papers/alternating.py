"""Streams in which related and unrelated tasks alternate: a pair of related ones, then another.

CIFAR-100: both tasks of a pair have the same 10 classes, of other images, and a head each; the next
pair has 10 others. MNIST: both have one permutation of the pixels, the second of images that are
rotated by 10 degrees before it; the next pair has another permutation; one head for all. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import InterpolationMode, rotate

from avalanche_mgem.streams import ArrayData, load_data, scenario_from_datasets

CLASSES = 10
DEGREES = 10.0


@dataclass(frozen=True)
class AlternatingStream:
    """Called with a seed, makes the scenario.

    Args:
        source: "cifar100" or "mnist".
        n_experiences: tasks, two a pair.
        train_per_experience: images.
        test_per_experience: images, the same for both tasks of a pair.
        data_root: folder of the data sets; runs are known by it too.
    """

    source: str
    n_experiences: int
    train_per_experience: int
    test_per_experience: int
    data_root: str

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"alternating-{self.source}"

    def __call__(self, seed: int) -> Any:
        """Return the scenario; a shorter stream is a prefix of a longer one."""
        data = load_data(self.source, data_root=self.data_root)
        make = self._by_class if self.source == "cifar100" else self._by_permutation
        train, test = [], []
        for task in range(self.n_experiences):
            pair, is_second = divmod(task, 2)
            parts = make(data, seed, pair, bool(is_second))
            train.append(parts[0])
            test.append(parts[1])
        return scenario_from_datasets(train, test, task_labels=self.source == "cifar100")

    def _by_class(
        self, data: ArrayData, seed: int, pair: int, is_second: bool
    ) -> tuple[TensorDataset, TensorDataset]:
        order = np.random.default_rng([seed, 0]).permutation(data.n_classes)
        classes = order[CLASSES * pair : CLASSES * (pair + 1)]
        if len(classes) < CLASSES:
            raise ValueError(
                f"n_experiences={self.n_experiences} needs {CLASSES} classes for each pair of tasks"
            )
        random = np.random.default_rng([seed, 1, pair])
        rows = random.permutation(np.flatnonzero(np.isin(data.y_train, classes)))
        test_rows = random.permutation(np.flatnonzero(np.isin(data.y_test, classes)))
        number = {int(label): place for place, label in enumerate(classes)}
        return (
            _part(data.x_train, data.y_train, self._train_rows(rows, is_second), number),
            _part(data.x_test, data.y_test, test_rows[: self.test_per_experience], number),
        )

    def _by_permutation(
        self, data: ArrayData, seed: int, pair: int, is_second: bool
    ) -> tuple[TensorDataset, TensorDataset]:
        random = np.random.default_rng([seed, 0])
        test_rows = random.permutation(len(data.y_test))[: self.test_per_experience]
        random = np.random.default_rng([seed, 1, pair])
        order = torch.from_numpy(random.permutation(int(np.prod(data.sample_shape))))
        rows = random.permutation(len(data.y_train))
        parts = (
            _part(data.x_train, data.y_train, self._train_rows(rows, is_second)),
            _part(data.x_test, data.y_test, test_rows),
        )
        return tuple(_permuted(part, order, DEGREES * is_second) for part in parts)  # type: ignore[return-value]

    def _train_rows(self, rows: np.ndarray, is_second: bool) -> np.ndarray:
        """Of a pair's shuffled rows, those of its first or its second task."""
        count = self.train_per_experience
        if len(rows) < 2 * count:
            raise ValueError(
                f"train_per_experience={count} is too many: a pair of tasks has {len(rows)} images"
            )
        return rows[count : 2 * count] if is_second else rows[:count]


def _part(
    x: Tensor, y: Tensor, rows: np.ndarray, number: dict[int, int] | None = None
) -> TensorDataset:
    chosen = torch.from_numpy(np.ascontiguousarray(rows))
    labels = y[chosen]
    if number is not None:
        labels = torch.tensor([number[label] for label in labels.tolist()])
    images = x[chosen]
    return TensorDataset(images.float() / 255 if images.dtype == torch.uint8 else images, labels)


def _permuted(part: TensorDataset, order: Tensor, degrees: float) -> TensorDataset:
    images, labels = part.tensors
    if degrees:
        images = rotate(images, degrees, InterpolationMode.BILINEAR)
    return TensorDataset(images.flatten(1)[:, order].view_as(images), labels)
