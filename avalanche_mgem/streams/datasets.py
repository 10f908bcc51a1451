"""Scenarios of anybody's data sets: a pair of them, for training and test, an experience."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    TaskAwareSupervisedClassificationDataset,
)
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_mgem.arguments import as_list
from avalanche_mgem.model.randomness import preserved_random_state
from avalanche_mgem.streams.labels import label_of, labels_of
from avalanche_mgem.streams.scenario import scenario_of, task_aware


def scenario_from_datasets(
    train: Iterable[Any],
    test: Iterable[Any],
    *,
    task_labels: bool | Sequence[int] = False,
) -> CLScenario:
    """Make a scenario of data sets: experience i trains on train[i] and is tested on test[i].

    train, test: as many data sets of one as of the other, for classification: of torch, torchvision
    or Avalanche, task sets of continuum (a scenario of continuum is a list of them), or anything
    else with a length and items (x, y) or (x, y, task). x is a tensor or an array, a mapping of
    tensors if the data set has a `collate_fn`; y a whole number >= 0, also as a tensor or an array
    of one. Labels are taken from `targets` and the like, see `labels_of`; samples are read when
    they are needed, and not kept. The transforms are the data sets' own.

    task_labels: False, 0 for all; True, experience i has the task label i; or the task label of
    each experience, as integers. Labels of classes stay what they are, with either.

    Items of the scenario's data sets are [x, y, task label]: x of floats is float32, y an int. The
    classes of an experience, before it, so far and after it are sorted lists, so that heads of any
    kind work, one for each task label included.

        pairs = [(Subset(digits, rows), Subset(digits, others)) for rows, others in tasks]
        scenario_from_datasets(*zip(*pairs), task_labels=True)

    Raises ValueError for no data sets, or different numbers of them, an empty one, items of another
    form and labels that are no whole numbers, naming the data set; for task_labels of another form.
    """
    parts = {"train": _listed("train", train), "test": _listed("test", test)}
    counts = {name: len(datasets) for name, datasets in parts.items()}
    if counts["train"] != counts["test"]:
        raise ValueError(
            f"train and test must be as many data sets, one of each an experience, got "
            f"{counts['train']} and {counts['test']}; one test set for all: [test] * "
            f"{counts['train']}"
        )
    tasks = _task_labels(task_labels, counts["train"])
    return scenario_of(
        **{
            name: [
                _part(f"{name}[{i}]", dataset, task)
                for i, (dataset, task) in enumerate(zip(datasets, tasks, strict=True))
            ]
            for name, datasets in parts.items()
        }
    )


class Items(Dataset[list[object]]):
    """A data set of (x, y, ...), its items as [x, y]: x as a tensor, of floats float32, y an int.

    labels: of its items, int [N]. An item of another label raises ValueError, as it is read.
    """

    def __init__(self, dataset: Any, labels: list[int]) -> None:
        self.dataset = dataset
        self.labels = labels
        if callable(collate := getattr(dataset, "collate_fn", None)):
            self.collate_fn = collate

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> list[object]:
        item = self.dataset[index]
        if label_of(item) != self.labels[index]:
            raise ValueError(
                f"item {index} of {type(self.dataset).__name__} has the label {label_of(item)}, "
                f"but the data set's labels say {self.labels[index]}"
            )
        return [self._input(item[0]), self.labels[index]]

    def _input(self, x: Any) -> Any:
        if hasattr(self, "collate_fn"):
            return x
        if isinstance(x, np.ndarray | np.number):
            x = torch.as_tensor(x)
        if not isinstance(x, Tensor):
            raise ValueError(
                f"x must be a tensor or an array, got {type(x).__name__}: give the data set a "
                "transform, such as torchvision's ToTensor()"
            )
        if x.dtype == torch.uint8:
            raise ValueError(
                "x must be scaled floats, got uint8: give the data set a transform, such as "
                "torchvision's ToDtype(torch.float32, scale=True)"
            )
        return x.float() if x.is_floating_point() else x


def _listed(name: str, datasets: Iterable[Any]) -> list[Any]:
    if isinstance(datasets, Dataset | AvalancheDataset):
        raise ValueError(
            f"{name} must be a list of data sets, one an experience, got one "
            f"{type(datasets).__name__}: take [{name}] for a single experience"
        )
    listed = as_list(name, datasets, object, what="a list of data sets")
    if not listed:
        raise ValueError(f"{name} must hold at least one data set, got none")
    return listed


def _task_labels(given: bool | Sequence[int], count: int) -> list[int]:
    if isinstance(given, bool):
        return [i if given else 0 for i in range(count)]
    what = "True, False or a task label >= 0 for each experience"
    labels = [
        int(label)
        for label in as_list("task_labels", given, Integral, what=what)
        if not isinstance(label, bool) and label >= 0
    ]
    if len(labels) != count or len(given) != count:
        raise ValueError(f"task_labels must be {what}, of which there are {count}, got {given!r}")
    return labels


def _part(name: str, dataset: Any, task: int) -> TaskAwareSupervisedClassificationDataset:
    what = f"{name} ({type(dataset).__name__})"
    try:
        size = len(dataset) if hasattr(dataset, "__getitem__") else None
    except TypeError:  # an IterableDataset, a tensor of no dimensions
        size = None
    if not size or isinstance(dataset, str | bytes | Mapping | Tensor | np.ndarray):
        raise ValueError(f"{what} must be a data set with a length >= 1 and items by index")
    try:
        labels = labels_of(dataset)
        # Those of Avalanche have transforms of their own for training and for evaluation.
        part = dataset if isinstance(dataset, AvalancheDataset) else Items(dataset, labels)
        with preserved_random_state():
            part[0]  # which says what is wrong with a sample
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return task_aware(part, labels, ConstantSequence(task, len(labels)))
