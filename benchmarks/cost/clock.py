"""Times of two variants, taken in turns, and what their pairs say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

SAMPLE_SECONDS = 0.02  # the least that one side of a pair takes in all
CASE_SECONDS = 8.0  # a case that takes longer gets fewer pairs
LEAST_PAIRS = 3


@dataclass
class Pairs:
    """Seconds of both variants, a pair at a time."""

    ours: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    def add(self, ours: float, baseline: float) -> None:
        """Take one more pair."""
        self.ours.append(ours)
        self.baseline.append(baseline)

    def __len__(self) -> int:
        return len(self.ours)

    def summary(self) -> dict[str, float | int]:
        """Return the quartiles of the paired ratios baseline / ours, and both medians in ms."""
        ours, baseline = np.array(self.ours), np.array(self.baseline)
        lower, middle, upper = np.percentile(baseline / ours, [25, 50, 75])
        return {
            "value": float(middle),
            "quartile_1": float(lower),
            "quartile_3": float(upper),
            "ours": float(np.median(ours) * 1e3),
            "baseline_value": float(np.median(baseline) * 1e3),
            "pairs": len(self),
        }


def in_turns(pair: int) -> tuple[str, str]:
    """Return who goes first in this pair: neither always finds the other's work in the cache."""
    return ("ours", "baseline") if pair % 2 == 0 else ("baseline", "ours")


def repetitions(seconds: float) -> int:
    """Return how often what takes so long is repeated, to make a sample of it."""
    return max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-6)))


def pair_numbers(wanted: int, seconds: float = CASE_SECONDS) -> Iterator[int]:
    """Count the pairs, fewer than wanted where they take too long."""
    start = time.perf_counter()
    for pair in range(wanted):
        late = time.perf_counter() - start > seconds
        if late and pair >= LEAST_PAIRS:
            return
        yield pair


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
