"""The two linear tasks, one pair or an array of them, with their domain checked."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avalanche_mgem.arguments import instance

Array = NDArray[np.float64]

_ATTRIBUTES = ("n", "p", "p2", "shared_norm", "specific_norm", "distance", "noise", "cosine")


class TwoTasks:
    """Two linear tasks y_k = X_k'u + Z_k'q_k + noise, with X_k [p, n] and Z_k [p2, n] Gaussian.

    Every argument may be an array; they are broadcast against each other, and every attribute has
    the shape that comes of it, float64. Scalars have shape ().

    Args:
        n: training samples of each task.
        p: shared parameters, u in R^p.
        p2: parameters of the task's own, q_k in R^p2, >= 2. p + p2 > n + 1: else task 1 has no
            minimum-norm fit with a finite expected error.
        shared_norm: |u|. Its entries count as equal in size, so that m of them have m/p of |u|^2;
            which m, drawn at random, comes to the same in expectation.
        specific_norm: |q_1|.
        distance: |q_2 - q_1|.
        noise: standard deviation of the noise in y.
        cosine: of the angle between q_2 - q_1 and q_1. 0 (ours): the new task asks for something
            unrelated to the old one; -distance / (2 specific_norm) keeps |q_2| = |q_1|. Only task
            2's own error depends on it.

    Raises:
        ValueError: arguments outside their domain, or whose shapes do not go together.
    """

    def __init__(
        self,
        *,
        n: ArrayLike,
        p: ArrayLike,
        p2: ArrayLike,
        shared_norm: ArrayLike,
        specific_norm: ArrayLike,
        distance: ArrayLike,
        noise: ArrayLike = 0.0,
        cosine: ArrayLike = 0.0,
    ) -> None:
        given = {
            "n": whole_numbers("n", n, minimum=1),
            "p": whole_numbers("p", p, minimum=1),
            "p2": whole_numbers("p2", p2, minimum=2),
            "shared_norm": real_numbers("shared_norm", shared_norm, minimum=0),
            "specific_norm": real_numbers("specific_norm", specific_norm, minimum=0),
            "distance": real_numbers("distance", distance, minimum=0),
            "noise": real_numbers("noise", noise, minimum=0),
            "cosine": real_numbers("cosine", cosine, minimum=-1, maximum=1),
        }
        same = broadcast(**given)
        self.n, self.p, self.p2 = same[:3]
        self.shared_norm, self.specific_norm, self.distance, self.noise, self.cosine = same[3:]
        require("p2", self.p2, self.p + self.p2 > self.n + 1, "> n + 1 - p", n=self.n, p=self.p)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all attributes."""
        return self.n.shape

    def __getitem__(self, index: int) -> TwoTasks:
        """The tasks at an index of the first dimension."""
        return TwoTasks(**{name: getattr(self, name)[index] for name in _ATTRIBUTES})


def whole_numbers(name: str, values: ArrayLike, *, minimum: int) -> Array:
    """Return values as float64, or raise ValueError: they must be whole numbers >= minimum."""
    numbers, bound = real_numbers(name, values), f"a whole number >= {minimum}"
    require(name, numbers, (numbers == np.floor(numbers)) & (numbers >= minimum), bound)
    return numbers


def real_numbers(
    name: str, values: ArrayLike, *, minimum: float = -math.inf, maximum: float = math.inf
) -> Array:
    """Return values as float64, or raise ValueError: finite, and between minimum and maximum."""
    try:
        given = np.asarray(values)
        # Whole numbers beyond int64 and fractions are objects to NumPy; texts are no numbers here.
        if given.dtype.kind not in "iuf" and not all(map(_is_real, given.flat)):
            raise TypeError(f"{given.dtype} holds other things than numbers")
        numbers = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name} must be numbers, got {values!r}") from error
    require(name, numbers, np.isfinite(numbers), "finite")
    require(name, numbers, numbers >= minimum, f">= {minimum:g}")
    require(name, numbers, numbers <= maximum, f"<= {maximum:g}")
    return numbers


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def require_tasks(tasks: object) -> None:
    """Raise ValueError unless tasks is a TwoTasks."""
    instance("tasks", tasks, TwoTasks, what="a TwoTasks")


def broadcast(**values: Array) -> list[Array]:
    """Return the arrays in one shape, or raise ValueError with the shapes that do not go."""
    try:
        return list(np.broadcast_arrays(*values.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in values.items() if array.ndim)
        raise ValueError(f"shapes that cannot be broadcast together: {shapes}") from error


def require(
    name: str, values: Array, holds: NDArray[np.bool_], bound: str, **context: Array
) -> None:
    """Raise ValueError with the first value for which the bound does not hold."""
    if np.all(holds):
        return
    first = int(np.argmin(holds))
    beside = [f"{other} = {array.flat[first]:g}" for other, array in context.items()]
    where = f" at {' and '.join(beside)}" if beside else ""
    raise ValueError(f"{name} must be {bound}, got {values.flat[first]:g}{where}")
