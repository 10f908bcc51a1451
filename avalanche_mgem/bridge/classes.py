"""The class of each sample, where a memory is chosen or divided by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_ARGUMENTS = "memory_split='class' and memory_selection='class-balanced'"


def class_targets(dataset: Any) -> NDArray[np.int64]:
    """Return the class index of each sample of a data set, [N].

    Raises:
        ValueError: the data set has no `targets`, as Avalanche's classification data sets have, or
            one of them is no integer, such as a number with a fraction, several labels or a dict.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise ValueError(
            f"{_ARGUMENTS} need a data set with `targets`, as Avalanche's classification data "
            f"sets have, got {type(dataset).__name__}"
        )
    classes = np.fromiter(map(_class, targets), dtype=np.int64)
    if len(classes) != len(dataset):
        raise ValueError(
            f"{_ARGUMENTS} need a target for each of {len(dataset)} samples, got {len(classes)}"
        )
    return classes


def _class(target: Any) -> int:
    if isinstance(target, Tensor):
        is_class = target.numel() == 1 and not (target.is_floating_point() or target.is_complex())
    elif isinstance(target, np.ndarray):
        is_class = target.size == 1 and target.dtype.kind in "iub"
    else:
        is_class = isinstance(target, int | np.integer | np.bool_)
    if not is_class:
        raise ValueError(
            f"{_ARGUMENTS} need an integer for each sample, its class, got the target {target!r}; "
            "'random' needs no classes"
        )
    return int(target)
