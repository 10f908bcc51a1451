"""Streams split by class in which successive experiences share classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_mgem.streams.arrays import ArrayData, require_data
from avalanche_mgem.streams.drawing import Draw, Indices, check_sizes, generator
from avalanche_mgem.streams.scenario import Pool, make_scenario
from avalanche_mgem.streams.vision.class_groups import correlated_groups, n_shared
from avalanche_mgem.streams.vision.vision import class_samples, rows_of_classes


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
    groups = correlated_groups(
        data.n_classes,
        data.name,
        n_experiences,
        classes_per_experience,
        shared_classes,
        class_order,
        seed,
    )
    per_experience = len(groups[0])
    step = per_experience - n_shared(per_experience, shared_classes)
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
