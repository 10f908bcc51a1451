"""Streams of domains: the same classes, each experience from a data set of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from avalanche.benchmarks import CLScenario
from torch import Tensor

from avalanche_mgem.arguments import as_list, bounded_int
from avalanche_mgem.streams.arrays import ArrayData, load_data, require_data
from avalanche_mgem.streams.drawing import Draw, Indices, check_sizes, draw_balanced
from avalanche_mgem.streams.npz import read_classes
from avalanche_mgem.streams.places import for_each_source, n_domains, require_sources, source_file
from avalanche_mgem.streams.scenario import Pool, Samples, make_scenario
from avalanche_mgem.streams.vision.images import as_rgb, resize_images


def domains_stream(
    data: Sequence[ArrayData],
    *,
    n_experiences: int | None = None,
    train_per_experience: int | None = None,
    test_per_experience: int | None = None,
    image_size: int = 32,
    seed: int = 0,
    task_labels: bool = False,
) -> CLScenario:
    """Domain-incremental: experience i has the samples of data[i], all have the same classes.

    As in Digit-Five, all images become [3, image_size, image_size]: resized as
    `ArrayData.resized` does, grey ones repeated to RGB. train_per_experience and
    test_per_experience draw samples of each data set without replacement, as evenly from its
    classes as can be; None takes all. n_experiences: how many of the data sets are taken, from the
    first on; None is all. task_labels: experience i has the task label i, instead of 0.

    Raises ValueError for sizes and seeds as `permuted_stream` does, and for data sets that are
    none, not images, grey or RGB, or that differ in their number of classes.
    """
    _check_domains(data)
    count = n_domains(len(data), n_experiences)
    check_sizes(count, train_per_experience, test_per_experience, seed, task_labels)
    bounded_int("image_size", image_size)
    train_parts, test_parts = [], []
    for at, each in enumerate(data[:count]):
        train = draw_balanced(each.y_train.numpy(), Draw.TRAIN, train_per_experience, seed, at)
        test = draw_balanced(each.y_test.numpy(), Draw.TEST, test_per_experience, seed, at)
        train_parts.append(_samples(each.x_train, each.y_train, train, image_size))
        test_parts.append(_samples(each.x_test, each.y_test, test, image_size))
    return make_scenario(train_parts, test_parts, task_labels)


def load_domains(
    sources: Sequence[str], *, data_root: Path | str | None = None, download: bool = True
) -> list[ArrayData]:
    """Load the data set of each source, see `load_data`, with pixels as uint8.

    Raises ValueError where some cannot be had, with what was looked for each, before any is loaded;
    and where the files' labels differ.
    """
    sources = as_list("sources", sources, str, what="a list of sources")
    if not sources:
        raise ValueError("sources must name at least one, got none")
    require_sources(sources, data_root, download)
    data: list[ArrayData] = for_each_source(
        sources,
        lambda source: load_data(source, data_root=data_root, download=download, keep_uint8=True),
    )
    _check_labels(sources, data, data_root)
    return data


def _samples(x: Tensor, y: Tensor, rows: Indices, image_size: int) -> Samples:
    images = as_rgb(resize_images(x[rows], image_size))
    return Samples(Pool(images, y[rows]), np.arange(len(rows)))


def _check_labels(
    sources: Sequence[str], data: Sequence[ArrayData], data_root: Path | str | None
) -> None:
    # Labels are numbered from 0 as they are read: 1..10 would pass for 0..9, and mean others.
    first: list[int] | None = None
    for source, each in zip(sources, data, strict=True):
        file = source_file(source, data_root)
        classes = list(range(each.n_classes)) if file is None else read_classes(file)
        first = classes if first is None else first
        if classes != first:
            raise ValueError(
                f"domains must have the same labels, but {sources[0]!r} has {first[:20]} and "
                f"{source!r} has {classes[:20]}"
            )


def _check_domains(data: Sequence[ArrayData]) -> None:
    if not isinstance(data, Sequence) or not data:
        raise ValueError(f"data must hold at least one domain, got {data!r}")
    for each in data:
        require_data(each)
        if len(each.sample_shape) != 3 or each.sample_shape[0] not in (1, 3):
            raise ValueError(
                f"data must be images, grey or RGB, but the samples of {each.name!r} have "
                f"shape {each.sample_shape}"
            )
        if each.n_classes != data[0].n_classes:
            raise ValueError(
                f"data must have the same classes in all domains, but {data[0].name!r} has "
                f"{data[0].n_classes} and {each.name!r} has {each.n_classes}"
            )
