"""Permuted, rotated and class-split streams over any data set in memory.

All randomness comes from the `seed` of a stream; the global random state of Python, NumPy and torch
is neither read nor moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from avalanche_mgem.arguments import finite
from avalanche_mgem.streams.arrays import ArrayData, require_data
from avalanche_mgem.streams.drawing import (
    Draw,
    Indices,
    check_sizes,
    draw_balanced,
    draw_rows,
    generator,
)
from avalanche_mgem.streams.scenario import Pool, Samples, make_scenario
from avalanche_mgem.streams.vision.class_groups import split_groups
from avalanche_mgem.streams.vision.images import unit_range


def permuted_stream(
    data: ArrayData,
    *,
    n_experiences: int,
    train_per_experience: int | None = None,
    test_per_experience: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    task_labels: bool = False,
) -> CLScenario:
    """Domain-incremental: each experience permutes the values of a sample in its own random way.

    As GEM's MNIST Permutations (arXiv 1706.08840, section 5.1): the first experience is permuted
    too; the values of all channels are permuted together, and samples keep their shape. Each
    experience draws its own train_per_experience training samples without replacement; the
    test_per_experience test samples are the same ones in all. None takes all there are. A stream of
    fewer experiences is a prefix of one of more.

    image_size: images are resized to it beforehand, see `ArrayData.resized`; None: as they are.
    task_labels: experience i has the task label i, instead of 0. Samples are permuted as they are
    read, so all experiences share the memory of one data set. Raises ValueError for sizes that are
    not positive integers, or more than there are, and for a seed that is not an integer >= 0.
    """
    require_data(data)
    check_sizes(n_experiences, train_per_experience, test_per_experience, seed, task_labels)
    data = data.resized(image_size)
    train, test = Pool(data.x_train, data.y_train), Pool(data.x_test, data.y_test)
    test_rows = draw_rows(len(test), Draw.TEST, test_per_experience, seed, 0)
    train_parts, test_parts = [], []
    for experience in range(n_experiences):
        order = generator(seed, Draw.TRANSFORM, experience).permutation(train.values.shape[1])
        rows = draw_rows(len(train), Draw.TRAIN, train_per_experience, seed, experience)
        train_parts.append(Samples(train, rows, order=order))
        test_parts.append(Samples(test, test_rows, order=order))
    return make_scenario(train_parts, test_parts, task_labels)


def rotated_stream(
    data: ArrayData,
    *,
    n_experiences: int,
    train_per_experience: int | None = None,
    test_per_experience: int | None = None,
    max_angle: float = 180.0,
    image_size: int | None = None,
    seed: int = 0,
    task_labels: bool = False,
) -> CLScenario:
    """Domain-incremental: each experience rotates the images by an angle of its own.

    As GEM's MNIST Rotations (arXiv 1706.08840, section 5.1): the angle of experience i is uniform
    in the i-th of n_experiences equal parts of [0, max_angle] degrees, counter-clockwise, bilinear,
    with zeros where the image has nothing. Samples are drawn as in `permuted_stream`, and
    image_size resizes before the rotation. The rotated images are stored at 4 bytes a value: 0.6 GB
    for 20 rotations of MNIST's 10,000 test images.

    Raises ValueError as `permuted_stream` does, for samples that are not images, and for a
    max_angle that is not finite and positive.
    """
    require_data(data)
    check_sizes(n_experiences, train_per_experience, test_per_experience, seed, task_labels)
    max_angle = _check_rotation(data, max_angle)
    data = data.resized(image_size)
    test_rows = draw_rows(len(data.y_test), Draw.TEST, test_per_experience, seed, 0)
    train_parts, test_parts = [], []
    for experience in range(n_experiences):
        position = experience + generator(seed, Draw.TRANSFORM, experience).random()
        angle = max_angle * position / n_experiences
        rows = draw_rows(len(data.y_train), Draw.TRAIN, train_per_experience, seed, experience)
        train_parts.append(_rotated(data.x_train, data.y_train, rows, angle))
        test_parts.append(_rotated(data.x_test, data.y_test, test_rows, angle))
    return make_scenario(train_parts, test_parts, task_labels)


def split_stream(
    data: ArrayData,
    *,
    n_experiences: int,
    train_per_experience: int | None = None,
    test_per_experience: int | None = None,
    class_order: Sequence[int] | str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    task_labels: bool = False,
) -> CLScenario:
    """Class-incremental: the classes are dealt out to the experiences in contiguous groups.

    The groups' sizes differ by at most 1, the larger ones first. class_order: a permutation of
    0..n_classes-1, also as text "2,0,1"; None is a random one. image_size: as in `permuted_stream`.
    train_per_experience and test_per_experience draw samples
    of each experience without replacement, as evenly from its classes as can be; None takes all.

    task_labels: experience i has the task label i, and its classes are numbered from 0 by their
    position in the group (one head an experience). Otherwise the task label is 0 everywhere and
    classes keep their numbers (one head, fixed or growing).

    Raises ValueError for sizes and seeds as `permuted_stream` does, for more experiences than
    classes, a class_order that is no permutation, and an experience without test samples.
    """
    require_data(data)
    check_sizes(n_experiences, train_per_experience, test_per_experience, seed, task_labels)
    groups = split_groups(data.n_classes, data.name, n_experiences, class_order, seed)
    data = data.resized(image_size)
    train, test = Pool(data.x_train, data.y_train), Pool(data.x_test, data.y_test)
    of_train, of_test = rows_of_classes(train, groups), rows_of_classes(test, groups)
    return make_scenario(
        class_samples(
            train, of_train, groups, Draw.TRAIN, train_per_experience, seed, renumber=task_labels
        ),
        class_samples(
            test, of_test, groups, Draw.TEST, test_per_experience, seed, renumber=task_labels
        ),
        task_labels,
    )


def _check_rotation(data: ArrayData, max_angle: float) -> float:
    if len(data.sample_shape) != 3:
        raise ValueError(
            f"data must hold images [N, C, H, W] to be rotated, but the samples of {data.name!r} "
            f"have shape {data.sample_shape}"
        )
    return finite("max_angle", max_angle, minimum=0.0, above=True)


def _rotated(x: Tensor, y: Tensor, rows: Indices, angle: float) -> Samples:
    chosen = torch.from_numpy(rows)
    images = rotate(unit_range(x[chosen]), angle, interpolation=InterpolationMode.BILINEAR)
    return Samples(Pool(images, y[chosen]), np.arange(len(rows)))


def rows_of_classes(pool: Pool, groups: Sequence[Indices]) -> list[Indices]:
    """Return for each group of classes the pool's rows that are of one of them, sorted."""
    return [np.flatnonzero(np.isin(pool.labels, group)) for group in groups]


def class_samples(
    pool: Pool,
    rows: Sequence[Indices],
    groups: Sequence[Indices],
    draw: Draw,
    count: int | None,
    seed: int,
    *,
    renumber: bool,
) -> list[Samples]:
    """Return the samples of each experience, which has the classes of a group.

    rows: of the pool, those that the experience may have. count: how many of them are drawn, as
    evenly from the classes as can be; None is all. renumber: label by position in the group. Raises
    ValueError where there are none, or fewer than `count`.
    """
    parts = []
    for experience, (members, group) in enumerate(zip(rows, groups, strict=True)):
        if len(members) == 0:
            raise ValueError(
                f"data has no {draw.name.lower()} samples of the classes {group.tolist()}, "
                f"which are experience {experience}"
            )
        chosen = members[draw_balanced(pool.labels[members], draw, count, seed, experience)]
        labels = _positions(pool, chosen, group) if renumber else None
        parts.append(Samples(pool, chosen, labels=labels))
    return parts


def _positions(pool: Pool, rows: Indices, group: Indices) -> Indices:
    position = np.empty(int(group.max()) + 1, dtype=np.int64)
    position[group] = np.arange(len(group))
    return position[pool.labels[rows]]
