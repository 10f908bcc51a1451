"""ACC, BWT, LA, FWT and forgetting against loops written from their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avalanche_mgem.evaluation import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
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
SCORES = (average_accuracy, learning_accuracy, backward_transfer, forgetting)


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
        assert math.isnan(forgetting(R))
        return
    total = 0.0
    for task in range(size - 1):
        total += R[size - 1, task] - R[task, task]
    assert backward_transfer(R) == pytest.approx(total / (size - 1))
    assert forgetting(R) == pytest.approx(-total / (size - 1))


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
    if len(R) > 1:
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
