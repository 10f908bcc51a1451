"""What the accuracy matrix says about learning and remembering.

R[t, i] is the test accuracy on task i after training on task t, both 0-based: float [T, T], NaN
where it was not measured. Every function takes accuracies in [0, 1] and returns a float in the same
unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def _square(accuracy: Matrix) -> Matrix:
    matrix = _numbers("accuracy", accuracy)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"accuracy must be a matrix [T, T] with T >= 1, got shape {matrix.shape}")
    return matrix


def _numbers(name: str, values: Matrix) -> Matrix:
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"holds {given.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r}") from error
    return np.asarray(given, dtype=np.float64)


def _minima(matrix: Matrix, lowest: Matrix | None) -> Matrix:
    size = len(matrix)
    minima = [matrix[task + 1 :, task].min() for task in range(size - 1)]
    least = np.array(minima, dtype=np.float64)
    if lowest is None:
        return least
    between = _numbers("lowest", lowest)
    if between.shape != (size,):
        raise ValueError(
            f"lowest must have shape ({size},), got {between.shape}: one number for each task of "
            "accuracy"
        )
    # Not np.fmin: what R lacks, no evaluation in between makes up for.
    return np.minimum(least, np.where(np.isnan(between[:-1]), np.inf, between[:-1]))


def average_accuracy(accuracy: Matrix) -> float:
    """ACC = mean over i of R[T-1, i] (GEM, arXiv 1706.08840, eq. 2)."""
    return float(_square(accuracy)[-1].mean())


def learning_accuracy(accuracy: Matrix) -> float:
    """LA = mean over i of R[i, i]: how well each task was learnt when it was new."""
    return float(np.diagonal(_square(accuracy)).mean())


def backward_transfer(accuracy: Matrix) -> float:
    """BWT = mean over i < T-1 of R[T-1, i] - R[i, i]; NaN for a single task.

    The mean is over T-1 tasks, as in the GEM paper (eq. 3). GEM's published code divides by T.
    """
    matrix = _square(accuracy)
    if len(matrix) == 1:
        return float("nan")
    return float((matrix[-1] - np.diagonal(matrix))[:-1].mean())


def forgetting(accuracy: Matrix) -> float:
    """Forgetting = mean over i < T-1 of (max over t in i..T-2 of R[t, i]) - R[T-1, i].

    What was lost of the best accuracy on each earlier task (Chaudhry et al., arXiv 1801.10112); NaN
    for a single task. It is -BWT only where no task was better later than when it was new.
    """
    lost = forgetting_of_tasks(accuracy)
    return float(lost.mean()) if len(lost) else float("nan")


def forgetting_of_tasks(accuracy: Matrix) -> Matrix:
    """Return (max over t in i..T-2 of R[t, i]) - R[T-1, i] of every task i < T-1, float [T-1]."""
    matrix = _square(accuracy)
    best = [matrix[task:-1, task].max() for task in range(len(matrix) - 1)]
    return np.array(best, dtype=np.float64) - matrix[-1, :-1]


def average_incremental_accuracy(accuracy: Matrix) -> float:
    """AIA = mean over t of the mean of R[t, 0..t]: ACC, averaged over the tasks as they came.

    iCaRL's average incremental accuracy (Rebuffi et al., arXiv 1611.07725, section 4); the name AIA
    is that of Wang et al. (arXiv 2302.00487).
    """
    matrix = _square(accuracy)
    return float(np.mean([row[: task + 1].mean() for task, row in enumerate(matrix)]))


def minimum_accuracy(accuracy: Matrix, lowest: Matrix | None = None) -> float:
    """min-ACC = mean over i < T-1 of the lowest accuracy on task i since its training was over.

    The average minimum accuracy of De Lange et al. (arXiv 2205.13452): over t in i+1..T-1 of
    R[t, i], and over what was measured in between; NaN for a single task. The more often it was
    evaluated, the lower.

    lowest: float [T], the lowest accuracy on each task measured while later ones were trained, NaN
    where it was not; None: R alone.
    """
    minima = _minima(_square(accuracy), lowest)
    return float(minima.mean()) if len(minima) else float("nan")


def worst_case_accuracy(accuracy: Matrix, lowest: Matrix | None = None) -> float:
    """WC-ACC = R[T-1, T-1] / T + (1 - 1/T) min-ACC (De Lange et al., arXiv 2205.13452).

    The accuracy that no task was ever below, but for the last, which counts as it is now.
    """
    matrix = _square(accuracy)
    return float(np.append(_minima(matrix, lowest), matrix[-1, -1]).mean())


def forward_transfer(accuracy: Matrix, baseline: NDArray[np.float64]) -> float:
    """FWT = mean over i > 0 of R[i-1, i] - baseline[i] (GEM, eq. 4); NaN for a single task.

    baseline: float [T], the accuracies at random initialisation. The result is NaN where the tasks
    ahead were not evaluated, as with heads that grow.
    """
    matrix = _square(accuracy)
    start = _numbers("baseline", baseline)
    if start.shape != (len(matrix),):
        raise ValueError(
            f"baseline must have shape ({len(matrix)},), got {start.shape}: one number for each "
            "task of accuracy"
        )
    if len(matrix) == 1:
        return float("nan")
    return float((np.diagonal(matrix, offset=1) - start[1:]).mean())
