"""The projection as its definition says, slowly: float64, loops, every active set tried in turn."""

from itertools import product

import numpy as np
from scipy.optimize import nnls


def solve_dual(gram, dots, lower):
    """argmin 1/2 v'Gv + d'v subject to v >= lower, for positive definite G with few rows.

    Every subset of the bounds is tried as the set that holds with equality; the one whose solution
    satisfies the optimality conditions best is the answer.
    """
    best, best_excess = None, np.inf
    for bound in product([True, False], repeat=len(dots)):
        at_bound = np.array(bound, dtype=bool)
        free = ~at_bound
        v = lower.astype(np.float64).copy()
        if free.any():
            right = -dots[free] - gram[np.ix_(free, at_bound)] @ lower[at_bound]
            v[free] = np.linalg.solve(gram[np.ix_(free, free)], right)
        excess = kkt_excess(gram, dots, lower, v)
        if excess < best_excess:
            best, best_excess = v, excess
    return best


def kkt_excess(gram, dots, lower, v):
    """How far v is from optimal, relative to the numbers in the conditions.

    The conditions: v >= lower; the derivative Gv + d >= 0; one of the two with equality. Each row
    is measured in its own unit, so long rows do not hide what short rows do.
    """
    length = np.sqrt(np.diagonal(gram))
    live = length > 0
    unit_gram = gram[np.ix_(live, live)] / np.outer(length[live], length[live])
    w, w_lower = v[live] * length[live], lower[live] * length[live]
    unit_dots = dots[live] / length[live]
    size = max(np.abs(unit_dots).max(initial=0), np.abs(w_lower).max(initial=0))
    if size == 0:
        return float(np.abs(w).max(initial=0))
    derivative = (unit_gram @ w + unit_dots) / size
    slack = (w - w_lower) / size
    # min(slack, derivative) is zero exactly at the optimum, row by row
    return float(np.abs(np.minimum(slack, derivative)).max(initial=0))


def project(gradient, rows, modules, lower, ridge):
    """z = g + A'v in each module that has a violated row.

    gradient: [P]; rows: [K, P]; modules: lists of positions; lower: [K]; ridge: a number, or
    "relative" for none: one that is not to be felt.
    """
    z = gradient.astype(np.float64).copy()
    for positions in modules:
        g = gradient[positions].astype(np.float64)
        a = rows[:, positions].astype(np.float64)
        dots = np.array([float(np.dot(row, g)) for row in a])
        if (dots >= 0).all():
            continue
        if ridge == "relative":
            z[positions] = nearest(g, a, lower)
            continue
        gram = np.array([[float(np.dot(r, s)) for s in a] for r in a])
        v = solve_dual(gram + ridge * np.eye(len(a)), dots, lower)
        for row, weight in zip(a, v, strict=True):
            z[positions] += weight * row
    return z


def nearest(gradient, rows, lower):
    """z = g + A'v, from the rows themselves: u = v - lower >= 0 is that which makes z shortest.

    No Gram matrix is made, whose rounding hides what distinguishes rows that are almost opposite.
    """
    start = gradient + lower @ rows
    length = np.linalg.norm(rows, axis=1)
    units = rows[length > 0] / length[length > 0, None]
    size = np.linalg.norm(start)
    if len(units) == 0 or size == 0:
        return start
    push, _ = nnls(units.T, -start / size, maxiter=100 * len(units))
    return start + push @ units * size
