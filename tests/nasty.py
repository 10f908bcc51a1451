"""Inputs that break careless code, shared by the tests: memory rows and gradients."""

import numpy as np
from hypothesis import strategies as st

from avalanche_mgem.restriction import PivotingSolver

SCALES = (1e-15, 1e-6, 1.0, 1e6, 1e15)


@st.composite
def rows_and_gradient(draw, max_rows=6):
    """Memory rows [K, P] and a gradient [P], float64, of one of the nasty kinds."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_rows = draw(st.integers(1, max_rows))
    size = draw(st.integers(1, 12))
    kind = draw(
        st.sampled_from(
            [
                "plain",
                "zero rows",
                "parallel",
                "opposed",
                "rank-deficient",
                "scales",
                "nearly parallel",
            ]
        )
    )
    rows = random.standard_normal((n_rows, size))
    if kind == "zero rows":
        rows[random.random(n_rows) < 0.5] = 0.0
    elif kind == "parallel":
        rows[:] = rows[0] * random.uniform(0.5, 2.0, (n_rows, 1))
    elif kind == "opposed":
        rows[:] = rows[0] * np.where(random.random((n_rows, 1)) < 0.5, 1.0, -1.0)
    elif kind == "rank-deficient":
        rows = random.standard_normal((n_rows, 2)) @ random.standard_normal((2, size))
    elif kind == "scales":
        rows *= np.array([SCALES[i % len(SCALES)] for i in range(n_rows)])[:, None]
    elif kind == "nearly parallel":
        rows = rows[0] + 1e-4 * rows
    gradient = random.standard_normal(size) * draw(st.sampled_from(SCALES))
    return rows, gradient


class Stubborn(PivotingSolver):
    """Says of every solve that it needed a larger ridge."""

    retries = 0

    def __call__(self, gram, dots, lower):
        self.retries += 1
        return super().__call__(gram, dots, lower)
