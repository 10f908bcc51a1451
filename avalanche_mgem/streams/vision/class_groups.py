"""Which classes an experience has, in streams that are split by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from avalanche_mgem.arguments import as_list, bounded_int, finite
from avalanche_mgem.streams.drawing import Draw, Indices, generator

_ROUNDING = 1e-9  # a product that is x.5 may come out just above it in floating point


def split_groups(
    n_classes: int,
    name: str,
    n_experiences: int,
    class_order: Sequence[int] | str | None = None,
    seed: int = 0,
) -> list[Indices]:
    """Return the classes of each experience of `split_stream` over the data set `name`."""
    if n_experiences > n_classes:
        raise ValueError(
            f"n_experiences={n_experiences} is more than the {n_classes} classes of "
            f"{name!r}: each experience needs at least one"
        )
    return np.array_split(ordered_classes(n_classes, class_order, seed), n_experiences)


def correlated_groups(
    n_classes: int,
    name: str,
    n_experiences: int,
    classes_per_experience: int | None = None,
    shared_classes: float = 0.5,
    class_order: Sequence[int] | str | None = None,
    seed: int = 0,
) -> list[Indices]:
    """Return the classes of each experience of `correlated_stream` over the data set `name`."""
    check_share(shared_classes)
    size = _group_size(n_classes, name, n_experiences, classes_per_experience, shared_classes)
    step = size - n_shared(size, shared_classes)
    order = ordered_classes(n_classes, class_order, seed)
    return [order[i * step : i * step + size] for i in range(n_experiences)]


def ordered_classes(n_classes: int, class_order: Sequence[int] | str | None, seed: int) -> Indices:
    """Return the classes in the order given, also as text "2,0,1", or in a random one for None.

    Raises ValueError where it is no permutation of 0..n_classes-1.
    """
    if class_order is None:
        return generator(seed, Draw.CLASSES).permutation(n_classes)
    what = f"a list of the classes 0..{n_classes - 1}"
    if isinstance(class_order, str):
        order: list[Any] = class_numbers(class_order)
    else:
        order = as_list("class_order", class_order, Integral, what=what)
    if any(isinstance(each, bool) for each in order) or sorted(order) != list(range(n_classes)):
        raise ValueError(
            f"class_order must have each of the classes 0..{n_classes - 1} once, got {order}"
        )
    return np.asarray(order, dtype=np.int64)


def class_numbers(text: str) -> list[int]:
    """Return the classes of "2,0,1"; raises ValueError for another form."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"class_order as text must be whole numbers with commas between, got {text!r}"
        ) from error


def check_share(shared_classes: float) -> None:
    """Raise ValueError unless it can be the share of an experience's classes, in [0, 1]."""
    if finite("shared_classes", shared_classes, minimum=0.0) > 1.0:
        raise ValueError(f"shared_classes is a share, in [0, 1], got {shared_classes!r}")


def n_shared(per_experience: int, share: float) -> int:
    """Return how many of its classes an experience has of the one before."""
    # Halves down, so that a half of an odd number of classes stays for two experiences, not three.
    return max(0, math.ceil(share * per_experience - 0.5 - _ROUNDING))


def _n_needed(per_experience: int, n_experiences: int, share: float) -> int:
    step = per_experience - n_shared(per_experience, share)
    return per_experience + (n_experiences - 1) * step


def _group_size(
    n_classes: int, name: str, n_experiences: int, given: int | None, share: float
) -> int:
    """Return the number of classes of an experience, or raise ValueError where it cannot be."""
    if given is not None:
        bounded_int("classes_per_experience", given)
        needed = _n_needed(given, n_experiences, share)
        if needed > n_classes:
            raise ValueError(
                f"classes_per_experience={given} in n_experiences={n_experiences} with "
                f"shared_classes={share} (each {n_shared(given, share)} of the one before) needs "
                f"{needed} classes, but {name!r} has {n_classes}"
            )
        return given
    for size in range(n_classes, 0, -1):
        # An experience of one class shares none or all of it, which is not what a share asks for.
        as_asked = n_shared(size, share) < size or share == 1.0
        if as_asked and _n_needed(size, n_experiences, share) <= n_classes:
            return size
    raise ValueError(
        f"n_experiences={n_experiences} with shared_classes={share} needs more classes than the "
        f"{n_classes} of {name!r}"
    )
