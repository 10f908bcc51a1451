"""Shared parameters that go a part of the way: errors in closed form, and the best part (ours).

On each task after the first the shared parameters go the part m, the magnitude, of the way that
initialized training takes them, and the task's own parameters make the smallest change that fits
what remains. With a = u - u^ and b = q - q^ before the task, r = X'a + Z'b + noise and
S = X'X + Z'Z,

    u^ += m X S^-1 r,    q^ += (1 - m) Z (Z'Z)^-1 r + m Z S^-1 r,

which is frozen training at m = 0 and initialized training at m = 1. Expectations need the traces of
B = S^-1/2 X'X S^-1/2 only, which is independent of S: E tr B = np/P and E tr B^2 = p (a + (p-1) b),
with the a and b of `closed_forms`, since B has the traces of a block of the projection Pi there.
The errors after a task are linear in those before it, and quadratic in m.

Gradient descent in which the shared parameters' steps are scaled by m ends elsewhere between 0 and
1, at the smallest |u^ - old|^2 / m + |q^ - old|^2 that fits: the traces are then those of
(I - (1 - m) B)^-1, of which no elementary form is known. `simulate_sequence` has both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from avalanche_mgem.arguments import bounded_int, flag
from avalanche_mgem.theory.closed_forms import Outcome, after_first, block_moments, require_frozen
from avalanche_mgem.theory.tasks import Array, TwoTasks, broadcast, real_numbers


def scaled(tasks: TwoTasks, magnitude: ArrayLike) -> Outcome:
    """Training of task 2 in which the shared parameters go the part `magnitude` of their way.

        scaled(tasks, 0.5).forgetting

    Args:
        tasks: the tasks, of any shape, p2 > n + 1.
        magnitude: m, from 0, `frozen`, to 1, `initialized`; broadcast against tasks.

    Raises:
        ValueError: p2 <= n + 1, or a magnitude outside [0, 1].
    """
    m = check_magnitude(tasks, magnitude)
    d2, total = tasks.distance**2, tasks.p + tasks.p2
    shared, specific = after_first(tasks)
    # E <q_1 - q^_1, q_2 - q_1>: a minimum-norm fit falls short of what it fits.
    product = (1 - tasks.n / total) * tasks.cosine * tasks.distance * tasks.specific_norm
    moved, own = _after(tasks, m, shared, specific + d2 + 2 * product)
    second = moved + own
    first = second - 2 * _left(tasks, m) * (d2 + product) + d2
    before = shared + specific
    return Outcome(*np.broadcast_arrays(shared, specific, before, first, second, first - before))


def optimal_magnitude(tasks: TwoTasks) -> Array:
    """The magnitude in [0, 1] of the least mean error on both tasks after `scaled` training.

    Raises:
        ValueError: p2 <= n + 1.
    """
    require_frozen(tasks)
    values = [scaled(tasks, m) for m in (0.0, 0.5, 1.0)]
    return _lowest(*(outcome.first + outcome.second for outcome in values))


def sequence_errors(tasks: TwoTasks, magnitudes: ArrayLike, *, kept: bool = False) -> Array:
    """Expected errors R[t, k] on task k after task t of a sequence, NaN where k > t, [T, T].

    Task k + 1 asks for q_{k+1} = q_k + a step of length `distance` in a direction drawn uniformly;
    `cosine` plays no part. Errors are as in `Outcome`: R[0, 0] is `before`, and with two tasks
    R[1, 0] and R[1, 1] are `first` and `second` at cosine 0.

    Args:
        tasks: one pair, of shape (): task 1 and how the others come of it.
        magnitudes: of the tasks, [T]; that of the first, which trains from zero, is not used.
        kept: past tasks keep their own parameters, as heads of their own; else the last task's have
            taken their place, as in the paper.

    Raises:
        ValueError: tasks is an array, p2 <= n + 1, magnitudes outside [0, 1] or none.
    """
    given = check_magnitudes(tasks, magnitudes)
    sequence = _Sequence(tasks, flag("kept", kept))
    rows = [sequence.row]
    for m in given[1:]:
        sequence = sequence.after(float(m))
        rows.append(sequence.row)
    errors = np.full((len(rows), len(rows)), np.nan)
    for t, row in enumerate(rows):
        errors[t, : t + 1] = row
    return errors


def optimal_magnitudes(tasks: TwoTasks, n_tasks: int, *, kept: bool = False) -> Array:
    """The magnitudes [T] of a sequence, each the best for the mean error after its own task.

    As `sequence_errors` has tasks and kept. Each task's is chosen with those before it as they were
    chosen; the first is 1.

    Raises:
        ValueError: as `sequence_errors`, or n_tasks < 1.
    """
    require_one(tasks)
    count = bounded_int("n_tasks", n_tasks, minimum=1)
    sequence = _Sequence(tasks, flag("kept", kept))
    chosen = [1.0]
    while len(chosen) < count:
        means = [np.mean(sequence.after(m).row) for m in (0.0, 0.5, 1.0)]
        chosen.append(float(_lowest(*map(np.asarray, means))))
        sequence = sequence.after(chosen[-1])
    return np.array(chosen)


class _Sequence:
    """Second moments after some tasks of a sequence."""

    def __init__(self, tasks: TwoTasks, kept: bool) -> None:
        self._tasks, self._kept = tasks, kept
        shared, specific = after_first(tasks)
        self._shared, self._specific = shared, [specific]
        self._products = [np.zeros(())]  # E <q_t - q^_t, q_t - q_k> by k

    def after(self, m: float) -> _Sequence:
        """Return the sequence with one task more, of this magnitude."""
        other = _Sequence(self._tasks, self._kept)
        d2, magnitude = self._tasks.distance**2, np.asarray(m, dtype=np.float64)
        moved, own = _after(self._tasks, magnitude, self._shared, self._specific[-1] + d2)
        left = _left(self._tasks, magnitude)
        other._shared, other._specific = moved, [*self._specific, own]
        other._products = [*(left * (product + d2) for product in self._products), np.zeros(())]
        return other

    @property
    def row(self) -> Array:
        """The errors on all tasks so far."""
        own = np.array(self._specific)
        if not self._kept:
            steps = np.arange(len(own))[::-1] * float(self._tasks.distance) ** 2
            own = own[-1] - 2 * np.array(self._products) + steps
        errors: Array = self._shared + own
        return errors


def _after(tasks: TwoTasks, m: Array, shared: Array, to_go: Array) -> tuple[Array, Array]:
    """Return E |u - u^|^2 and E |q - q^|^2 after a task, of E |a|^2 and E |b|^2 before it."""
    n, p, p2, sigma2 = tasks.n, tasks.p, tasks.p2, tasks.noise**2
    total, free = p + p2, p2 - n - 1
    one, two = block_moments(tasks)  # of B
    cross = one - two  # E tr B (I - B)
    inverse = 1 / (total - n - 1)  # E S^-1
    of_shared = (1 - 2 * m * one / p + m**2 * two / p) * shared
    moved = of_shared + m**2 * (cross / p2 * to_go + inverse * one * sigma2)
    both = 2 * m * (1 - m)
    of_own = (1 - n / p2 + m**2 * (two / p2)) * to_go
    of_held = ((1 - m) ** 2 * (n / free) + (both * one + m**2 * cross) / p) * shared
    fitted = (1 - m) ** 2 * n / free + inverse * (both * n + m**2 * (n - one))
    return moved, of_own + of_held + fitted * sigma2


def _left(tasks: TwoTasks, m: Array) -> Array:
    """Return the factor of E b by which a task leaves it."""
    left: Array = 1 - (1 - m) * tasks.n / tasks.p2 - m * tasks.n / (tasks.p + tasks.p2)
    return left


def _lowest(at_0: Array, at_half: Array, at_1: Array) -> Array:
    """Return where in [0, 1] the parabola through three values is lowest."""
    bend = 2 * (at_0 - 2 * at_half + at_1)
    slope = 4 * at_half - 3 * at_0 - at_1
    inside = np.clip(-slope / (2 * np.where(bend > 0, bend, 1.0)), 0.0, 1.0)
    lowest: Array = np.where(bend > 0, inside, np.where(at_1 < at_0, 1.0, 0.0))
    return lowest


def check_magnitude(tasks: TwoTasks, magnitude: ArrayLike, name: str = "magnitude") -> Array:
    """Return magnitudes in the shape that they have with tasks, or raise ValueError."""
    require_frozen(tasks)
    numbers = real_numbers(name, magnitude, minimum=0, maximum=1)
    m, _ = broadcast(**{name: numbers, "tasks": tasks.p})
    return m


def check_magnitudes(tasks: TwoTasks, magnitudes: ArrayLike) -> Array:
    """Return the magnitudes [T] of a sequence, or raise ValueError, also for the tasks."""
    require_one(tasks)
    numbers = check_magnitude(tasks, magnitudes, name="magnitudes")
    if numbers.ndim > 1 or not numbers.size:
        raise ValueError(
            f"magnitudes must name at least one task and be [T], got shape {numbers.shape}"
        )
    return np.atleast_1d(numbers)


def require_one(tasks: TwoTasks) -> None:
    """Raise ValueError unless tasks are one pair in the domain of frozen training."""
    require_frozen(tasks)
    if tasks.shape != ():
        raise ValueError(f"tasks must be one pair, got an array of shape {tasks.shape}")
