import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_mgem.results.statistics import mean_interval, pareto_front

scores = st.floats(-1, 1, allow_subnormal=False)
few = st.sampled_from([0.0, 0.1, 0.2, math.nan])  # few values, so that ties and copies are common
points = st.lists(st.tuples(few, few) | st.tuples(scores, scores), max_size=12)

# The 97.5% quantile of Student's t by degrees of freedom, from a printed table.
T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042}


@pytest.mark.parametrize("freedom", T_TABLE)
def test_half_width_is_the_textbook_formula(freedom):
    values = np.random.default_rng(freedom).normal(0.8, 0.1, freedom + 1)
    mean, half_width = mean_interval(list(values))
    assert mean == pytest.approx(values.mean())
    expected = T_TABLE[freedom] * values.std(ddof=1) / math.sqrt(freedom + 1)
    assert half_width == pytest.approx(expected, rel=3e-4)


def test_95_of_100_intervals_hold_the_true_mean():
    draws = np.random.default_rng(0).normal(0.5, 0.1, (2000, 3))
    held = sum(abs(mean - 0.5) <= half for mean, half in map(mean_interval, draws.tolist()))
    assert held / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors


@given(st.lists(scores, min_size=1, max_size=8), st.randoms())
def test_order_does_not_matter_to_the_last_bit(values, random):
    shuffled = random.sample(values, len(values))
    np.testing.assert_array_equal(mean_interval(shuffled), mean_interval(values))


@given(st.lists(scores, min_size=2, max_size=8), scores, st.floats(0.01, 100))
def test_follows_shift_and_scale(values, shift, scale):
    mean, half_width = mean_interval(values)
    moved = mean_interval([scale * value + shift for value in values])
    assert moved == pytest.approx((scale * mean + shift, scale * half_width), abs=1e-10)


def test_one_value_has_no_interval():
    mean, half_width = mean_interval([0.7])
    assert mean == 0.7
    assert math.isnan(half_width)


def test_equal_values_have_an_interval_of_nothing():
    assert mean_interval([0.25] * 5) == (0.25, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@given(others=st.lists(scores, max_size=4))
def test_a_value_that_is_no_number_gives_nan(value, others):
    assert all(math.isnan(part) for part in mean_interval([*others, value]))


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="values must hold at least one"):
        mean_interval([])


def _dominates(a, b):
    return a[0] >= b[0] and a[1] >= b[1] and a != b


@given(points)
def test_front_is_what_nothing_dominates(points):
    expected = [
        i
        for i, point in enumerate(points)
        if point[0] == point[0]
        and point[1] == point[1]
        and not any(_dominates(other, point) for other in points)
    ]
    front = pareto_front(points)
    assert sorted(front) == expected
    assert front == sorted(front, key=lambda i: (points[i][0], i))


@given(points)
def test_second_coordinate_falls_along_the_front(points):
    front = [points[i] for i in pareto_front(points)]
    assert all(a == b or a[1] > b[1] for a, b in itertools.pairwise(front))


def test_all_copies_of_a_front_point_stay():
    assert pareto_front([(0.5, 0.5), (0.4, 0.4), (0.5, 0.5)]) == [0, 2]


def test_infinite_points_are_points():
    assert pareto_front([(-math.inf, -math.inf)]) == [0]
    assert pareto_front([(0.0, math.inf), (math.inf, 0.0), (0.0, 0.0)]) == [0, 1]


def test_half_a_point_dominates_nothing():
    assert pareto_front([(math.nan, 1.0), (0.2, 0.1), (1.0, math.nan)]) == [1]


def test_no_points_no_front():
    assert pareto_front([]) == []
