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


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test for differences around zero, exactly.

    Under the null hypothesis each difference has either sign with probability 1/2; p is the share
    of all 2^m patterns of signs whose sum of positive ranks is at least as far from its mean. Ranks
    are of the absolute differences; equal ones, to 12 decimals, share the mean of their ranks, and
    zeros are left out, as Wilcoxon did (Biometrics Bulletin 1(6), 1945). Without ties it is
    scipy.stats.wilcoxon's method="exact", whose p is wrong where there are ties. With m differences
    p is at least 2^(1-m). It is 1 where all are zero, NaN where one is NaN or infinite.

    Raises:
        ValueError: if differences is empty.
    """
    if len(differences) == 0:
        raise ValueError("differences must hold at least one number, got none")
    if not all(math.isfinite(value) for value in differences):
        return math.nan
    # Accuracies that differ by as many samples differ in the last bits, and would not tie.
    signed = [rounded for value in differences if (rounded := round(value, 12)) != 0]
    ranks = _doubled_ranks([abs(value) for value in signed])
    counts = {0: 1}  # of the patterns of signs, by the sum of their positive ranks
    for rank in ranks:
        more = dict(counts)
        for total, count in counts.items():
            more[total + rank] = more.get(total + rank, 0) + count
        counts = more
    positive = sum(rank for rank, value in zip(ranks, signed, strict=True) if value > 0)
    distance = abs(2 * positive - sum(ranks))
    as_far = sum(n for total, n in counts.items() if abs(2 * total - sum(ranks)) >= distance)
    return as_far / sum(counts.values())


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Return twice the rank of each value, from 1, equal ones at their mean: whole numbers."""
    below = {value: sum(other < value for other in values) for value in values}
    return [2 * below[value] + values.count(value) + 1 for value in values]


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


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that points dominate and that dominates a reference, both to be large.

    Points with a NaN, and those that are no better than the reference in both coordinates, add
    nothing (Zitzler and Thiele, IEEE Trans. Evol. Comput. 3(4), 1999).
    """
    area, below = 0.0, reference[1]
    front = [points[i] for i in pareto_front(points)]
    # From the largest first coordinate down, each point adds a rectangle above the one before.
    for x, y in reversed(front):
        if x > reference[0] and y > below:
            area += (x - reference[0]) * (y - below)
            below = y
    return area
