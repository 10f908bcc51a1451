"""Learning rates over an experience, as a factor of the optimiser's rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""The factor, from the share of the experience's iterations that have been trained, in [0, 1)."""

_WARM_UP = 0.1  # share of the iterations


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _linear(done: float) -> float:
    return 1.0 - done


def _step(done: float) -> float:
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def _exponential(done: float) -> float:
    return math.pow(0.01, done)


def _warm_up_cosine(done: float) -> float:
    rising = (done + 1e-3) / (_WARM_UP + 1e-3)  # the first iteration trains, too
    return min(rising, _cosine(max(0.0, done - _WARM_UP) / (1.0 - _WARM_UP)))


SCHEDULES: dict[str, Schedule] = {
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
    "exponential": _exponential,
    "warmup-cosine": _warm_up_cosine,
}
"""By name: half a cosine; a line; a tenth after 1/2 and 3/4; down to 1/100; a tenth of warm-up."""
