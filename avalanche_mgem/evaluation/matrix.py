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
    """Forgetting = -BWT: the mean accuracy lost on the earlier tasks; NaN for a single task."""
    return -backward_transfer(accuracy)


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
