"""The two linear tasks trained in fact, many times over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avalanche_mgem.arguments import bounded_int, positive_int
from avalanche_mgem.theory.closed_forms import Outcome, check_moving
from avalanche_mgem.theory.tasks import Array, TwoTasks, require_tasks

# Numbers in the features of the runs that are trained at once: 8 MiB.
_BATCH = 2**20


@dataclass(frozen=True)
class Simulation:
    """What runs of one pair of tasks gave.

    Where moving + p2 lies within a few of n + 1, the errors have heavy tails: few runs then see
    too little of them, and the standard error is too small.
    """

    mean: Outcome
    """Means over the runs, of shape ()."""
    standard_error: Outcome
    """Standard errors of the means, of shape ()."""
    runs: int


def simulate(
    tasks: TwoTasks, moving: int = 0, *, runs: int = 1000, seed: int | None = 0
) -> Simulation:
    """Train one pair of tasks on fresh data `runs` times, as `outcome` describes.

    Features and noise are drawn anew in each run; u, q_1 and q_2 are fixed vectors of the stated
    norms, as Gaussian features know no direction. Errors are |u^ - u|^2 + |q^ - q_k|^2 of the
    trained parameters: the expectation over a fresh sample is taken exactly.

    Args:
        tasks: one pair, of shape ().
        moving: how many shared parameters may change on task 2; 0 is frozen training, p
            initialized.
        runs: >= 2.
        seed: of numpy's generator; None draws one. The global random state is not touched.

    Raises:
        ValueError: tasks is an array, or moving, runs or seed lie outside their domain.
    """
    require_tasks(tasks)
    if tasks.shape != ():
        raise ValueError(f"tasks must be one pair, got an array of shape {tasks.shape}")
    runs = bounded_int("runs", runs, minimum=2)
    if seed is not None:
        positive_int("seed", seed, minimum=0)
    m = int(check_moving(tasks, positive_int("moving", moving, minimum=0)))
    size = max(1, _BATCH // int(tasks.n * (tasks.p + tasks.p2)))
    random = np.random.default_rng(seed)
    batches = [_run(tasks, m, min(size, runs - start), random) for start in range(0, runs, size)]
    errors = np.concatenate(batches, axis=1)
    spread = errors.std(axis=1, ddof=1) / np.sqrt(runs)
    return Simulation(Outcome(*errors.mean(axis=1)), Outcome(*spread), runs)


def _run(tasks: TwoTasks, moving: int, runs: int, random: np.random.Generator) -> Array:
    """Return the quantities of `Outcome` in each run, [6, runs]."""
    p = int(tasks.p)
    w1, w2 = _true_parameters(tasks)
    start = np.zeros((runs, len(w1)))
    learnt = _train(tasks, start, w1, 0, random)
    # The shared parameters come first, and of them those that stay.
    final = _train(tasks, learnt, w2, p - moving, random)
    shared = np.sum((learnt - w1)[:, :p] ** 2, axis=1)
    specific = np.sum((learnt - w1)[:, p:] ** 2, axis=1)
    before = shared + specific
    first, second = (np.sum((final - w) ** 2, axis=1) for w in (w1, w2))
    return np.stack([shared, specific, before, first, second, first - before])


def _true_parameters(tasks: TwoTasks) -> tuple[Array, Array]:
    """Return u and q_1, and u and q_2, one after the other, each [P]."""
    p, p2 = int(tasks.p), int(tasks.p2)
    u = np.full(p, tasks.shared_norm / np.sqrt(p))
    q1, change = np.zeros(p2), np.zeros(p2)
    q1[0] = tasks.specific_norm
    change[:2] = tasks.cosine, np.sqrt(1 - tasks.cosine**2)
    return np.concatenate([u, q1]), np.concatenate([u, q1 + tasks.distance * change])


def _train(
    tasks: TwoTasks, start: Array, true: Array, held: int, random: np.random.Generator
) -> Array:
    """Return start [runs, P] after the smallest change, none in the first `held`, that fits."""
    runs, total = start.shape
    n = int(tasks.n)
    features = random.standard_normal((runs, n, total))
    noise = tasks.noise * random.standard_normal((runs, n))
    missing = np.einsum("rnp,rp->rn", features, true - start) + noise
    moving = features[:, :, held:]
    weights = np.linalg.solve(moving @ moving.swapaxes(1, 2), missing[:, :, None])
    end: Array = start.copy()
    end[:, held:] += (moving.swapaxes(1, 2) @ weights)[:, :, 0]
    return end
