"""Intervals over seeds, and which of two goals traded for each other cannot be had better."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.95
"""Coverage of every interval in the tables and plots."""


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of n values and the half-width of its 95% interval, in the values' unit.

    half-width = t * s / sqrt(n), with s the standard deviation over n - 1 and t the 97.5% quantile
    of Student's t with n - 1 degrees of freedom. It is NaN for one value. Both are NaN where a
    value is NaN or infinite. The order of the values does not matter, to the last bit.

    Raises:
        ValueError: if values is empty.
    """
    if len(values) == 0:
        raise ValueError("values must hold at least one number, got none")
    if not all(math.isfinite(value) for value in values):
        return math.nan, math.nan
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    from scipy.stats import t as student_t

    quantile = float(student_t.ppf((1 + LEVEL) / 2, count - 1))
    return mean, quantile * deviation / math.sqrt(count)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point dominates, both coordinates to be large.

    A point dominates another if it is no smaller in both coordinates and larger in one. The indices
    come sorted by the first coordinate, equal points by index; all copies of a front point stay. A
    point with a NaN is never on the front and dominates nothing.
    """
    measured = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    front: list[int] = []
    # From the largest first coordinate down, a point needs a second one larger than all before it.
    for i in sorted(measured, key=lambda i: points[i], reverse=True):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return sorted(front, key=lambda i: (points[i][0], i))
