"""The scores of R against loops written from their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avalanche_mgem.evaluation import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forgetting_of_tasks,
    forward_transfer,
    learning_accuracy,
    minimum_accuracy,
    worst_case_accuracy,
)

accuracies = st.integers(1, 7).flatmap(
    lambda size: arrays(np.float64, (size, size), elements=st.floats(0, 1))
)
with_baseline = st.integers(1, 7).flatmap(
    lambda size: st.tuples(
        arrays(np.float64, (size, size), elements=st.floats(0, 1)),
        arrays(np.float64, (size,), elements=st.floats(0, 1)),
    )
)
SCORES = (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    learning_accuracy,
    minimum_accuracy,
    worst_case_accuracy,
)


@given(accuracies)
def test_acc_and_la_are_means_of_the_last_row_and_the_diagonal(R):
    size = len(R)
    acc, la = 0.0, 0.0
    for task in range(size):
        acc += R[size - 1, task] / size
        la += R[task, task] / size
    assert average_accuracy(R) == pytest.approx(acc)
    assert learning_accuracy(R) == pytest.approx(la)


@given(accuracies)
def test_bwt_is_the_mean_change_of_the_earlier_tasks(R):
    size = len(R)
    if size == 1:
        assert math.isnan(backward_transfer(R))
        return
    total = 0.0
    for task in range(size - 1):
        total += R[size - 1, task] - R[task, task]
    assert backward_transfer(R) == pytest.approx(total / (size - 1))


@given(accuracies)
def test_forgetting_is_what_was_lost_of_the_best_accuracy(R):
    size = len(R)
    losses = forgetting_of_tasks(R)
    assert losses.shape == (size - 1,)
    if size == 1:
        assert math.isnan(forgetting(R))
        return
    total = 0.0
    for task in range(size - 1):
        best = max(R[t, task] for t in range(task, size - 1))
        assert losses[task] == pytest.approx(best - R[size - 1, task])
        total += best - R[size - 1, task]
    assert forgetting(R) == pytest.approx(total / (size - 1))
    assert forgetting(R) >= -backward_transfer(R) - 1e-12


@given(accuracies)
def test_forgetting_is_the_negative_of_bwt_where_no_task_gets_better_later(R):
    falling = np.minimum.accumulate(R, axis=0)
    np.testing.assert_allclose(forgetting(falling), -backward_transfer(falling), atol=1e-12)


def test_forgetting_of_a_task_that_got_better_and_then_worse():
    R = np.array([[0.5, 0.0, 0.0], [0.9, 0.8, 0.0], [0.6, 0.7, 0.8]])
    assert forgetting(R) == pytest.approx((0.3 + 0.1) / 2)
    assert backward_transfer(R) == pytest.approx((0.1 - 0.1) / 2)


@given(accuracies)
def test_aia_is_the_mean_of_acc_over_the_tasks_as_they_came(R):
    accs = [average_accuracy(R[: t + 1, : t + 1]) for t in range(len(R))]
    assert average_incremental_accuracy(R) == pytest.approx(sum(accs) / len(accs))


@given(with_baseline)
def test_worst_cases_are_the_lowest_accuracies_since_a_task_was_learnt(case):
    R, lowest = case
    size = len(R)
    if size == 1:
        assert math.isnan(minimum_accuracy(R, lowest))
        assert worst_case_accuracy(R, lowest) == R[0, 0]
        return
    alone = between = 0.0
    for task in range(size - 1):
        least = min(R[t, task] for t in range(task + 1, size))
        alone += least / (size - 1)
        between += min(least, lowest[task]) / (size - 1)
    for minimum, value in ((None, alone), (lowest, between), (np.full(size, np.nan), alone)):
        assert minimum_accuracy(R, minimum) == pytest.approx(value)
        expected = R[-1, -1] / size + (1 - 1 / size) * value
        assert worst_case_accuracy(R, minimum) == pytest.approx(expected)


def test_no_evaluation_in_between_stands_for_one_that_r_lacks():
    R = np.array([[0.9, 0.0], [np.nan, 0.8]])
    assert math.isnan(minimum_accuracy(R, np.array([0.5, 0.5])))
    assert math.isnan(worst_case_accuracy(R, np.array([0.5, 0.5])))


@given(with_baseline)
def test_fwt_is_the_mean_gain_before_a_task_is_trained(case):
    R, baseline = case
    size = len(R)
    if size == 1:
        assert math.isnan(forward_transfer(R, baseline))
        return
    total = 0.0
    for task in range(1, size):
        total += R[task - 1, task] - baseline[task]
    assert forward_transfer(R, baseline) == pytest.approx(total / (size - 1))


@given(accuracies, st.floats(0, 1))
def test_a_model_that_never_changes_transfers_nothing(R, value):
    constant = np.full_like(R, value)
    assert average_accuracy(constant) == pytest.approx(value)
    assert learning_accuracy(constant) == pytest.approx(value)
    assert average_incremental_accuracy(constant) == pytest.approx(value)
    assert worst_case_accuracy(constant) == pytest.approx(value)
    if len(R) > 1:
        assert minimum_accuracy(constant) == pytest.approx(value)
        assert forgetting(constant) == 0
        assert backward_transfer(constant) == pytest.approx(0)
        assert forward_transfer(constant, constant[0]) == pytest.approx(0)


@given(accuracies)
def test_tasks_ahead_matter_to_fwt_alone(R):
    lower = np.where(np.tri(len(R), dtype=bool), R, np.nan)
    for score in SCORES:
        np.testing.assert_equal(score(lower), score(R))
    assert math.isnan(forward_transfer(lower, np.zeros(len(R))))


@pytest.mark.parametrize("shape", [(0, 0), (2, 3), (3,), (2, 2, 2)])
def test_what_is_no_square_matrix_is_refused(shape):
    for score in SCORES:
        with pytest.raises(ValueError, match=r"accuracy must be a matrix \[T, T\]"):
            score(np.zeros(shape))


def test_a_baseline_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"baseline must have shape \(3,\), got \(2,\)"):
        forward_transfer(np.zeros((3, 3)), np.zeros(2))


def test_lowest_accuracies_of_another_length_are_refused():
    for score in (minimum_accuracy, worst_case_accuracy):
        with pytest.raises(ValueError, match=r"lowest must have shape \(3,\), got \(2,\)"):
            score(np.zeros((3, 3)), np.zeros(2))
