"""Expected errors and forgetting of two linear tasks, in closed form (derived for this project).

Task 1's error after training is (I - A(A'A)^-1 A')w_1, less A(A'A)^-1 times the noise, where A
stacks X_1 and Z_1, w_1 stacks u and q_1, and P = p + p2. With Pi a projection on a random subspace
of n of P dimensions,

    E Pi = (n/P) I,  E Pi w w' Pi = (a - b) w w' + b |w|^2 I,  E tr (A'A)^-1 = n/(P - n - 1),
    a = n(n+2) / (P(P+2)),  b = n(P-n) / (P(P-1)(P+2)),

the second from the trace and from the beta distribution of w'Pi w/|w|^2. Task 2 is the same fit
again, in the P' parameters that move and from where task 1 ended; the errors of the others reach it
through Gaussian features, which makes them noise. The rest is expectation over Pi with the start
held fixed, and then over the start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avalanche_mgem.theory.tasks import (
    Array,
    TwoTasks,
    broadcast,
    real_numbers,
    require,
    require_tasks,
    whole_numbers,
)


class Outcome(NamedTuple):
    """Expected squared errors of the two tasks, float64 arrays of one shape.

    The generalization error of task k is E (x'(u^ - u) + z'(q^ - q_k))^2 on a fresh sample, so
    |u^ - u|^2 + |q^ - q_k|^2, without the sample's own noise: add sigma^2 for the error against
    the observed y.
    """

    shared: Array
    """Eu = E |u^ - u|^2 after task 1."""
    specific: Array
    """Eq = E |q^_1 - q_1|^2 after task 1."""
    before: Array
    """Generalization error of task 1 after task 1, Eu + Eq."""
    first: Array
    """Generalization error of task 1 after task 2, whose q has taken the place of task 1's."""
    second: Array
    """Generalization error of task 2 after task 2."""
    forgetting: Array
    """first - before."""


def frozen(tasks: TwoTasks) -> Outcome:
    """Frozen training: only q moves on task 2. With eta = Eu + sigma^2 and P = p + p2.

        F = (n/p2)(d^2 - Eq) + n eta/(p2 - n - 1)
        second = Eu + (1 - n/p2) D + n eta/(p2 - n - 1)
        D = E |q_2 - q^_1|^2 = Eq + d^2 + 2 (1 - n/P) <q_1, q_2 - q_1>

    Raises:
        ValueError: p2 <= n + 1.
    """
    require_frozen(tasks)
    return outcome(tasks, 0)


def initialized(tasks: TwoTasks) -> Outcome:
    """Initialized training: all P parameters move on task 2.

    F = (n/P)(d^2 - Eu - Eq) + n sigma^2/(P - n - 1)
    second = (1 - n/P)(Eu + D) + n sigma^2/(P - n - 1), D as in `frozen`.
    """
    require_tasks(tasks)
    return outcome(tasks, tasks.p)


def outcome(tasks: TwoTasks, moving: ArrayLike) -> Outcome:
    """Training of task 2 in which q and `moving` of the p shared parameters may change.

    With m = moving, P' = m + p2, Em = (m/p) Eu the error of the shared parameters that move, and
    eta = Eu - Em + sigma^2 the variance that the others and the noise leave in the targets:

        F = (n/P')(d^2 - Em - Eq) + n eta/(P' - n - 1)
        second = Eu - Em + (1 - n/P')(Em + D) + n eta/(P' - n - 1), D as in `frozen`.

    m = 0 is `frozen`, m = p is `initialized`: the constraint "change at most P' parameters", which
    unites the two in the paper. Of the squared distance d^2, task 1 pays the share n/P' and task 2
    the rest (with cosine 0), so m decides between whom it is divided, not how much it is. Source:
    ours.

    Args:
        tasks: the tasks, of any shape.
        moving: 0 to p, broadcast against tasks.

    Raises:
        ValueError: moving is no whole number from 0 to p, or moving + p2 <= n + 1.
    """
    m = check_moving(tasks, moving)
    n, d2, sigma2 = tasks.n, tasks.distance**2, tasks.noise**2
    total, trained = tasks.p + tasks.p2, m + tasks.p2
    shared, specific = after_first(tasks)
    moved, held = m / tasks.p * shared, (1 - m / tasks.p) * shared
    fitted_noise = n * (held + sigma2) / (trained - n - 1)
    forgetting = n / trained * (d2 - moved - specific) + fitted_noise
    # E (q^_1 - q_1) = -(1 - n/P) q_1: a minimum-norm fit falls short of what it fits.
    product = tasks.cosine * tasks.distance * tasks.specific_norm
    to_go = moved + specific + d2 + 2 * (1 - n / total) * product
    second = held + (1 - n / trained) * to_go + fitted_noise
    before = shared + specific
    values = (shared, specific, before, before + forgetting, second, forgetting)
    return Outcome(*np.broadcast_arrays(*values))


def frozen_forgetting(n: ArrayLike, p2: ArrayLike, xi: ArrayLike, eta: ArrayLike) -> Array:
    """Forgetting of frozen training, F = -n xi/p2 + n eta/(p2 - n - 1), as a function of p2.

    Args:
        n: samples of each task.
        p2: parameters that move, > n + 1; need not be whole, as `optimal_p2` is not.
        xi: Eq - d^2.
        eta: Eu + sigma^2, >= 0.

    Raises:
        ValueError: arguments outside their domain.
    """
    samples, slope, noise = _frozen_arguments(n, xi, eta)
    samples, slope, noise, moved = broadcast(
        n=samples, xi=slope, eta=noise, p2=real_numbers("p2", p2)
    )
    require("p2", moved, moved > samples + 1, "> n + 1", n=samples)
    return samples * (noise / (moved - samples - 1) - slope / moved)


def optimal_p2(n: ArrayLike, xi: ArrayLike, eta: ArrayLike) -> Array:
    """The p2 that forgets least in frozen training, p2* = (n + 1) / (1 - sqrt(eta/xi)).

    The one extremum of `frozen_forgetting` with xi and eta held fixed: a minimum, where F is
    -n/(n + 1) (sqrt xi - sqrt eta)^2. It exists where xi > eta > 0 and is NaN elsewhere: with
    xi <= eta forgetting falls in p2 for ever, with eta = 0 < xi it rises. Eu and Eq follow p2
    themselves, so among models of different p2 the least forgetting is found elsewhere.

    Args:
        n: samples of each task.
        xi: Eq - d^2.
        eta: Eu + sigma^2, >= 0.

    Raises:
        ValueError: arguments outside their domain.
    """
    samples, slope, noise = _frozen_arguments(n, xi, eta)
    samples, slope, noise = broadcast(n=samples, xi=slope, eta=noise)
    exists = (slope > noise) & (noise > 0)
    root = np.sqrt(noise / np.where(exists, slope, 1.0))
    gap = np.where(exists, slope - noise, np.nan)
    # Multiplied by 1 + root above and below: 1 - root would lose digits where xi is near eta.
    best: Array = (samples + 1) * (1 + root) * slope / gap
    return best


def crossing(tasks: TwoTasks) -> Array:
    """The distance of the tasks at which frozen and initialized training forget the same.

    Both are linear in d^2, frozen training with the larger slope, n/p2 against n/P: it forgets less
    below this distance, initialized training beyond it. NaN where initialized training forgets
    less at every distance. `tasks.distance` plays no part. Source: ours.

    Raises:
        ValueError: p2 <= n + 1.
    """
    require_frozen(tasks)
    n, p2, total = tasks.n, tasks.p2, tasks.p + tasks.p2
    shared, specific = after_first(tasks)
    sigma2 = tasks.noise**2
    # Per sample and at distance 0.
    of_frozen = (shared + sigma2) / (p2 - n - 1) - specific / p2
    of_initialized = sigma2 / (total - n - 1) - (shared + specific) / total
    squared = (of_initialized - of_frozen) / (1 / p2 - 1 / total)
    return np.sqrt(np.where(squared >= 0, squared, np.nan))


def after_first(tasks: TwoTasks) -> tuple[Array, Array]:
    """Return Eu and Eq."""
    n, total = tasks.n, tasks.p + tasks.p2
    u2, q2 = tasks.shared_norm**2, tasks.specific_norm**2
    a, b = _entries(n, total)
    fitted_noise = n * tasks.noise**2 / (total - n - 1)
    own, spread = 1 - 2 * n / total + a - b, b * (u2 + q2) + fitted_noise / total
    return own * u2 + tasks.p * spread, own * q2 + tasks.p2 * spread


def block_moments(tasks: TwoTasks) -> tuple[Array, Array]:
    """Return E tr and E tr of the square of the block of Pi that the shared parameters have."""
    n, p, total = tasks.n, tasks.p, tasks.p + tasks.p2
    a, b = _entries(n, total)
    return n * p / total, p * a + p * (p - 1) * b


def _entries(n: Array, total: Array) -> tuple[Array, Array]:
    """Return a and b: the mean squares of an entry of Pi on its diagonal, and off it."""
    a = n * (n + 2) / (total * (total + 2))
    return a, n * (total - n) / (total * (total - 1) * (total + 2))


def require_frozen(tasks: TwoTasks) -> None:
    """Raise ValueError for tasks outside the domain of frozen training."""
    require_tasks(tasks)
    require("p2", tasks.p2, tasks.p2 > tasks.n + 1, "> n + 1 in frozen training", n=tasks.n)


def check_moving(tasks: TwoTasks, moving: ArrayLike) -> Array:
    """Return moving in the shape that it has with tasks, or raise ValueError, see `outcome`."""
    require_tasks(tasks)
    numbers = whole_numbers("moving", moving, minimum=0)
    m, p, p2, n = broadcast(moving=numbers, p=tasks.p, p2=tasks.p2, n=tasks.n)
    require("moving", m, m <= p, "<= p", p=p)
    require("moving", m, m + p2 > n + 1, "> n + 1 - p2", n=n, p2=p2)
    return m


def _frozen_arguments(n: ArrayLike, xi: ArrayLike, eta: ArrayLike) -> tuple[Array, Array, Array]:
    samples = whole_numbers("n", n, minimum=1)
    return samples, real_numbers("xi", xi), real_numbers("eta", eta, minimum=0)
