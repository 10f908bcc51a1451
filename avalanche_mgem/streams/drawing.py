"""What is random in a stream, drawn from its seed and from nothing else."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from avalanche_mgem.arguments import bounded_int, flag, positive_int

Indices = NDArray[np.int64]


class Draw(IntEnum):
    """What a generator is for. Each has its own, so that no size changes another draw."""

    # From 1, because NumPy takes the seeds [s] and [s, 0] for the same.
    TRANSFORM = 1
    TRAIN = 2
    TEST = 3
    CLASSES = 4
    VALIDATION = 5


def generator(seed: int, draw: Draw, experience: int = 0) -> np.random.Generator:
    """Return the generator of one draw of one experience, the same however many there are."""
    return np.random.default_rng([seed, experience, int(draw)])


def check_sizes(
    n_experiences: int,
    train_per_experience: int | None,
    test_per_experience: int | None,
    seed: int,
    task_labels: bool = False,
) -> None:
    """Raise ValueError unless the sizes are positive integers (or None) and seed is one >= 0.

    And where task_labels is neither True nor False.
    """
    flag("task_labels", task_labels)
    bounded_int("n_experiences", n_experiences)
    if train_per_experience is not None:
        positive_int("train_per_experience", train_per_experience)
    if test_per_experience is not None:
        positive_int("test_per_experience", test_per_experience)
    positive_int("seed", seed, minimum=0)


def draw_rows(available: int, draw: Draw, count: int | None, seed: int, experience: int) -> Indices:
    """`count` of the rows 0..available-1 without replacement, int [count]; None is all, in order.

    Raises ValueError where there are fewer.
    """
    if count is None:
        return np.arange(available)
    check_available(draw, count, available, "there are")
    return generator(seed, draw, experience).permutation(available)[:count]


def draw_balanced(
    labels: Indices, draw: Draw, count: int | None, seed: int, experience: int
) -> Indices:
    """As `draw_rows` from len(labels), with as equal a number of each label as there can be."""
    if count is None:
        return np.arange(len(labels))
    check_available(draw, count, len(labels), f"experience {experience} has")
    shuffled = generator(seed, draw, experience).permutation(len(labels))
    return shuffled[np.argsort(_occurrence(labels[shuffled]), kind="stable")[:count]]


def draw_share(labels: Indices, draw: Draw, share: float, seed: int, experience: int) -> Indices:
    """Rows of a share of the labels, at random, each label in proportion to how often it is there.

    That are round(share * N) rows and at least one, dealt out to the labels by Sainte-Laguë's rule;
    of each label at least one is left, so it may be fewer, and none where no label is there twice.

    labels: int [N]. share: in (0, 1). Returns int [count], sorted.
    """
    shuffled = generator(seed, draw, experience).permutation(len(labels))
    _, numbers, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    occurrence, sizes = _occurrence(labels[shuffled]), counts[numbers]
    candidates = np.flatnonzero(occurrence < sizes - 1)
    turn = (occurrence[candidates] + 0.5) / sizes[candidates]
    count = max(1, round(share * len(labels)))
    return np.sort(shuffled[candidates[np.argsort(turn, kind="stable")[:count]]])


def _occurrence(labels: Indices) -> Indices:
    """For each position how many earlier positions have the same label, int [N]."""
    occurrence = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        occurrence[members] = np.arange(len(members))
    return occurrence


def check_available(draw: Draw, count: int, available: int, who: str) -> None:
    """Raise ValueError where `count` samples are more than are available."""
    if count > available:
        raise ValueError(
            f"{draw.name.lower()}_per_experience={count} is more than {who}: "
            f"at most {available} are possible"
        )
