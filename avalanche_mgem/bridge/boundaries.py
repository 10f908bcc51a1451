"""Where a task starts and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avalanche.benchmarks import OnlineCLExperience


@dataclass(frozen=True)
class Boundary:
    """What an experience tells about the task it belongs to.

    Args:
        known: whether the stream tells where tasks start and end at all.
        starts: whether a task starts with this experience.
        ends: whether the task ends with it. Avalanche does not mark the last sub-experience of an
            online stream when the task's size is a multiple of the sub-experience's, so a task also
            ends when the next one starts.
    """

    known: bool
    starts: bool
    ends: bool


def task_boundary(experience: Any) -> Boundary:
    """Tell what `experience` says about task boundaries.

    An ordinary experience is a task. A sub-experience of an online stream is a part of one; without
    access to the boundaries nothing is known.
    """
    if not isinstance(experience, OnlineCLExperience):
        return Boundary(known=True, starts=True, ends=True)
    if not experience.access_task_boundaries:
        return Boundary(known=False, starts=False, ends=False)
    return Boundary(known=True, starts=experience.is_first_subexp, ends=experience.is_last_subexp)
