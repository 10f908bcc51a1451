"""Streams split by class in which successive experiences share classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_mgem.arguments import bounded_int, finite
from avalanche_mgem.streams.arrays import ArrayData, require_data
from avalanche_mgem.streams.drawing import Draw, Indices, check_sizes, generator
from avalanche_mgem.streams.scenario import Pool, make_scenario
from avalanche_mgem.streams.vision.vision import class_samples, ordered_classes, rows_of_classes

_ROUNDING = 1e-9  # a product that is x.5 may come out just above it in floating point


def correlated_stream(
    data: ArrayData,
    *,
    n_experiences: int,
    classes_per_experience: int | None = None,
    shared_classes: float = 0.5,
    train_per_experience: int | None = None,
    test_per_experience: int | None = None,
    class_order: Sequence[int] | str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    task_labels: bool = False,
) -> CLScenario:
    """Class-incremental with overlap: an experience has some classes of the one before.

    As Correlated Split CIFAR-100 (arXiv 2602.20796), whose construction the paper leaves open; this
    one is ours. With k = classes_per_experience and m = shared_classes * k, rounded, halves down,
    experience i has k classes in a row of the class order, from position i * (k - m) on: the last m
    of experience i - 1 and k - m later ones. A share of 0 is a split without overlap, with a share
    of 1 all have the same classes, and above 1/2 a class stays for more than two experiences. k:
    None is the most for which there are classes enough.

    No training sample is in two experiences. Each class's training samples are dealt at random into
    equal parts (to within 1), as many as experiences can have the class, and an experience takes
    one part of each of its classes. Classes near the ends of the stream are in fewer experiences;
    their other parts stay unused, so that experiences are alike. The test samples of a class are
    the same in all experiences that have it.

    train_per_experience and the other arguments are as in `split_stream`: with task_labels, classes
    are numbered from 0 by their position in the experience, and a shared class has another number
    in each. With k given, a stream of fewer experiences is a prefix of one of more, unless it is
    shorter than a class stays.

    Raises ValueError as `split_stream` does, for a share outside [0, 1], more classes or
    experiences than the data's classes allow, and a class with fewer training samples than parts.
    """
    require_data(data)
    check_sizes(n_experiences, train_per_experience, test_per_experience, seed, task_labels)
    if finite("shared_classes", shared_classes, minimum=0.0) > 1.0:
        raise ValueError(f"shared_classes is a share, in [0, 1], got {shared_classes!r}")
    per_experience = _group_size(data, n_experiences, classes_per_experience, shared_classes)
    step = per_experience - _n_shared(per_experience, shared_classes)
    order = ordered_classes(data.n_classes, class_order, seed)
    groups = [order[i * step : i * step + per_experience] for i in range(n_experiences)]
    stays = min(n_experiences, -(-per_experience // step)) if step else n_experiences
    data = data.resized(image_size)
    train, test = Pool(data.x_train, data.y_train), Pool(data.x_test, data.y_test)
    of_train = _dealt(train, groups, stays, seed)
    of_test = rows_of_classes(test, groups)
    return make_scenario(
        class_samples(
            train, of_train, groups, Draw.TRAIN, train_per_experience, seed, renumber=task_labels
        ),
        class_samples(
            test, of_test, groups, Draw.TEST, test_per_experience, seed, renumber=task_labels
        ),
        task_labels,
    )


def _n_shared(per_experience: int, share: float) -> int:
    # Halves down, so that a half of an odd number of classes stays for two experiences, not three.
    return max(0, math.ceil(share * per_experience - 0.5 - _ROUNDING))


def _n_needed(per_experience: int, n_experiences: int, share: float) -> int:
    step = per_experience - _n_shared(per_experience, share)
    return per_experience + (n_experiences - 1) * step


def _group_size(data: ArrayData, n_experiences: int, given: int | None, share: float) -> int:
    """Return the number of classes of an experience, or raise ValueError where it cannot be."""
    if given is not None:
        bounded_int("classes_per_experience", given)
        needed = _n_needed(given, n_experiences, share)
        if needed > data.n_classes:
            raise ValueError(
                f"classes_per_experience={given} in n_experiences={n_experiences} with "
                f"shared_classes={share} (each {_n_shared(given, share)} of the one before) needs "
                f"{needed} classes, but {data.name!r} has {data.n_classes}"
            )
        return given
    for size in range(data.n_classes, 0, -1):
        # An experience of one class shares none or all of it, which is not what a share asks for.
        as_asked = _n_shared(size, share) < size or share == 1.0
        if as_asked and _n_needed(size, n_experiences, share) <= data.n_classes:
            return size
    raise ValueError(
        f"n_experiences={n_experiences} with shared_classes={share} needs more classes than the "
        f"{data.n_classes} of {data.name!r}"
    )


def _dealt(pool: Pool, groups: list[Indices], n_parts: int, seed: int) -> list[Indices]:
    """Return each experience's rows of the pool, no row twice, sorted.

    n_parts: how many successive experiences have a class, at most. Raises ValueError for a class
    with fewer rows.
    """
    parts = {}
    for label in np.unique(np.concatenate(groups)).tolist():
        rows = np.flatnonzero(pool.labels == label)
        if len(rows) < n_parts:
            raise ValueError(
                f"data has {len(rows)} train samples of class {label}, which up to {n_parts} "
                "experiences share without having a sample in common: share fewer classes"
            )
        # From 1, because 0 is the generator of the order of the classes.
        shuffled = generator(seed, Draw.CLASSES, 1 + label).permutation(rows)
        parts[label] = np.array_split(shuffled, n_parts)
    # Of n_parts successive experiences, no two have the same remainder.
    return [
        np.sort(np.concatenate([parts[label][i % n_parts] for label in group.tolist()]))
        for i, group in enumerate(groups)
    ]
