"""The class labels of anybody's data sets, without decoding their samples where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from avalanche_mgem.model.randomness import preserved_random_state

# Of torchvision's data sets, of Avalanche's and of continuum's, in which the labels are told.
_ATTRIBUTES = ("targets", "labels", "_labels", "_y")


def labels_of(dataset: Any) -> list[int]:
    """Return the class labels of a map-style data set whose items are (x, y, ...), int [N].

    From what the data set tells (`targets` and the like, also of the data sets in a Subset or a
    ConcatDataset, after its target transform), if its first, middle and last items agree; else from
    all items, each of which is read once.

    Raises ValueError for items of another form, and for labels that are no whole numbers >= 0.
    """
    told, count = _told(dataset), len(dataset)
    with preserved_random_state():
        if told is not None and all(
            label_of(dataset[i]) == told[i] for i in {0, count // 2, count - 1} if count
        ):
            return told
        return [label_of(dataset[i]) for i in range(count)]


def label_of(item: Any) -> int:
    """Return the class label of an item (x, y, ...); raises ValueError where it has none."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        got = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise ValueError(f"items must be (x, y), or (x, y, task), got {type(item).__name__}{got}")
    label = _whole(item[1])
    if label is None or label < 0:
        raise ValueError(f"y must be a class label, a whole number >= 0, got {item[1]!r}")
    return label


def _told(dataset: Any) -> list[int] | None:
    """The labels that a data set tells; None where it tells none, or something else."""
    values = _raw(dataset)
    try:
        fits = values is not None and len(values) == len(dataset)
    except TypeError:  # a tensor of no dimensions
        fits = False
    return _all_whole(_transformed(dataset, values)) if fits else None


def _raw(dataset: Any) -> Any:
    """What a data set has for labels, before its target transform; None where it has none."""
    if isinstance(dataset, Subset):
        inner = _told(dataset.dataset)
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_told(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) > 1 else None
    if isinstance(dataset, AvalancheDataset):
        # Its attribute `targets` may be that of the data set that it was made from.
        return dataset._data_attributes.get("targets")
    named = (getattr(dataset, name, None) for name in _ATTRIBUTES)
    return next((v for v in named if hasattr(v, "__len__") and not isinstance(v, str | dict)), None)


def _transformed(dataset: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The labels as items have them: what torchvision and continuum do to them on the way."""
    if callable(transform := getattr(dataset, "target_transform", None)):
        return [transform(value) for value in _as_list(values)]
    if getattr(dataset, "target_trsf", None) is not None:
        tasks = zip(values, dataset._t, strict=True)
        return [dataset.get_task_target_trsf(task)(value) for value, task in tasks]
    return values


def _all_whole(values: Sequence[Any]) -> list[int] | None:
    found = [_whole(value) for value in _as_list(values)]
    labels = [label for label in found if label is not None and label >= 0]
    return labels if len(labels) == len(found) else None


def _as_list(values: Sequence[Any]) -> list[Any]:
    # At once, because a tensor's elements are tensors, each made on its own.
    plain: list[Any] = values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
    return plain


def _whole(value: Any) -> int | None:
    """Return a label as an int: of a number, or of an array or a list that holds just one."""
    if isinstance(value, Integral | np.bool_):
        return int(value)
    if isinstance(value, list) and len(value) == 1:
        return _whole(value[0])
    if isinstance(value, Tensor | np.ndarray) and np.prod(value.shape) == 1:
        return _whole(value.item())
    return None
