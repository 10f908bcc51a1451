"""Which task an experience is of, and what its stream tells about tasks."""

from __future__ import annotations

import operator
from typing import Any

from avalanche.benchmarks import OnlineCLExperience
from avalanche.training.supervised import JointTraining

from avalanche_mgem.bridge.strategy import Strategy


def whole_experience(experience: Any) -> Any | None:
    """Return the experience that a sub-experience of an online stream was cut from.

    An ordinary experience is returned as it is. A sub-experience of a blurry stream, which was cut
    from several experiences, has none: None.
    """
    if isinstance(experience, OnlineCLExperience):
        return experience.origin_experience
    return experience


def trained_together(strategy: Strategy) -> list[Any]:
    """Return the experiences whose samples are trained on now: of JointTraining all at once.

    They tell all that they know, also what a strategy must not be told.
    """
    joint: Any = strategy if isinstance(strategy, JointTraining) else None
    experiences = [strategy.experience] if joint is None else joint._experiences
    return [experience.logging() for experience in experiences]


def full_length(stream: Any) -> int | None:
    """Return how many experiences a stream has, of a slice the stream's; None: nobody knows."""
    length = getattr(stream, "_full_length", None)
    if length is not None:
        return int(length())
    return len(stream) if hasattr(stream, "__len__") else None


def classes_of(experience: Any) -> frozenset[int] | None:
    """Return the classes of an experience's samples; None where they are not told."""
    classes = getattr(experience, "classes_in_this_experience", None)
    try:
        if classes is None:
            targets = getattr(getattr(experience, "dataset", None), "targets", None)
            # Avalanche's attribute of a data set goes through the samples once.
            classes = getattr(targets, "uniques", targets)
        return None if classes is None else frozenset(map(operator.index, classes))
    except TypeError:  # no integers, or nothing to go through
        return None
