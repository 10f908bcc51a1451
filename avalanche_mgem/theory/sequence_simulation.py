"""Sequences of linear tasks trained in fact, by magnitudes of the shared parameters' updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from avalanche_mgem.arguments import bounded_int, flag, one_of, positive_int
from avalanche_mgem.theory.magnitude import check_magnitudes
from avalanche_mgem.theory.tasks import Array, TwoTasks

How = Literal["way", "steps"]

# Numbers in the features of the runs that are trained at once: 8 MiB.
_BATCH = 2**20


@dataclass(frozen=True)
class SequenceSimulation:
    """What runs of one sequence gave."""

    mean: Array
    """Means of R over the runs, [T, T], NaN where k > t."""
    standard_error: Array
    """Standard errors of the means, [T, T]."""
    runs: int


def simulate_sequence(
    tasks: TwoTasks,
    magnitudes: ArrayLike,
    *,
    kept: bool = False,
    how: How = "way",
    runs: int = 1000,
    seed: int | None = 0,
) -> SequenceSimulation:
    """Train one sequence of tasks on fresh data `runs` times, as `sequence_errors` describes.

    Features, noise and the steps from task to task are drawn anew in each run.

    Args:
        tasks: one pair, of shape (), p2 > n + 1.
        magnitudes: of the tasks, [T].
        kept: as of `sequence_errors`.
        how: what a magnitude m is. "way": as there. "steps": of gradient descent to the end in
            which the steps of the shared parameters are multiplied by m, which ends at the
            smallest |u^ - old|^2 / m + |q^ - old|^2 that fits; it has no closed form.
        runs: >= 2.
        seed: of numpy's generator; None draws one. The global random state is not touched.

    Raises:
        ValueError: what `sequence_errors` raises; how, runs or seed outside their domain.
    """
    given = check_magnitudes(tasks, magnitudes)
    kept, how_far = flag("kept", kept), one_of("how", how, ("way", "steps"))
    runs = bounded_int("runs", runs, minimum=2)
    if seed is not None:
        positive_int("seed", seed, minimum=0)
    random = np.random.default_rng(seed)
    size = max(1, _BATCH // int(tasks.n * (tasks.p + tasks.p2)))
    batches = [
        _run(tasks, given, kept, how_far, min(size, runs - start), random)
        for start in range(0, runs, size)
    ]
    errors = np.concatenate(batches)
    spread: Array = errors.std(axis=0, ddof=1) / np.sqrt(runs)
    return SequenceSimulation(errors.mean(axis=0), spread, runs)


def _run(
    tasks: TwoTasks, magnitudes: Array, kept: bool, how: str, runs: int, random: np.random.Generator
) -> Array:
    """Return R of each run, [runs, T, T]."""
    p, p2, count = int(tasks.p), int(tasks.p2), len(magnitudes)
    u = np.full(p, tasks.shared_norm / np.sqrt(p))
    asked = np.zeros((runs, p2))
    asked[:, 0] = tasks.specific_norm
    shared, specific = np.zeros((runs, p)), np.zeros((runs, p2))
    wanted: list[Array] = []
    learnt: list[Array] = []
    errors = np.full((runs, count, count), np.nan)
    for task, magnitude in enumerate(magnitudes):
        if task:
            asked = asked + float(tasks.distance) * _directions(runs, p2, random)
        m = 1.0 if task == 0 else float(magnitude)
        moved, own = _changes(tasks, u - shared, asked - specific, m, how, random)
        shared, specific = shared + moved, specific + own
        wanted.append(asked)
        learnt.append(specific)
        of_shared = np.sum((shared - u) ** 2, axis=1)
        for past, target in enumerate(wanted):
            mine = learnt[past] if kept else specific
            errors[:, task, past] = of_shared + np.sum((mine - target) ** 2, axis=1)
    return errors


def _directions(runs: int, size: int, random: np.random.Generator) -> Array:
    drawn = random.standard_normal((runs, size))
    directions: Array = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return directions


def _changes(
    tasks: TwoTasks, a: Array, b: Array, m: float, how: str, random: np.random.Generator
) -> tuple[Array, Array]:
    """Return how the parameters change on a task: a [runs, p] and b [runs, p2] are yet to go."""
    runs, n = len(a), int(tasks.n)
    x, z = (random.standard_normal((runs, n, values.shape[1])) for values in (a, b))
    noise = float(tasks.noise) * random.standard_normal((runs, n))
    missing: Array = (x @ a[:, :, None] + z @ b[:, :, None])[:, :, 0] + noise
    of_x, of_z = x @ x.swapaxes(1, 2), z @ z.swapaxes(1, 2)
    if how == "steps":
        weights = _solved(m * of_x + of_z, missing)
        return m * _times(x, weights), _times(z, weights)
    weights = _solved(of_x + of_z, missing)
    alone = _solved(of_z, missing)
    return m * _times(x, weights), _times(z, (1 - m) * alone + m * weights)


def _solved(gram: Array, right: Array) -> Array:
    solved = np.linalg.solve(gram, right[:, :, None])
    return np.asarray(solved[:, :, 0], dtype=np.float64)


def _times(features: Array, weights: Array) -> Array:
    product: Array = np.einsum("rnp,rn->rp", features, weights)
    return product
