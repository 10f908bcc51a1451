"""What a run leaves behind, and its JSON."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_results import curve as curve_of
from made_results import held_out, made

from avalanche_mgem.evaluation import (
    AccuracyCurve,
    average_accuracy,
    backward_transfer,
    forgetting,
    learning_accuracy,
)
from avalanche_mgem.experiment import RunResult

accuracy = st.floats(0, 1) | st.just(math.nan)


def curves(size):
    point = st.tuples(st.integers(0), st.integers(0, size))
    return st.lists(point, min_size=1, max_size=4).flatmap(
        lambda points: st.builds(
            AccuracyCurve,
            st.just([iteration for iteration, _ in points]),
            st.just([trained for _, trained in points]),
            arrays(np.float64, (len(points), size), elements=accuracy),
        )
    )


results = st.integers(1, 5).flatmap(
    lambda size: st.builds(
        RunResult,
        method=st.text(),
        stream=st.text(),
        seed=st.integers(0),
        accuracy=arrays(np.float64, (size, size), elements=accuracy),
        baseline=arrays(np.float64, (size,), elements=accuracy),
        seconds=st.floats(0, 1e6),
        restriction=st.dictionaries(st.text(), st.floats(-1, 1)),
        configuration=st.dictionaries(st.text(), st.integers() | st.none() | st.lists(st.text())),
        versions=st.dictionaries(st.text(), st.text()),
        metrics=st.dictionaries(st.text(), st.floats(-1, 1)),
        diverged=st.none() | st.integers(0, 5),
        masked=st.none() | arrays(np.float64, (size, size), elements=accuracy),
        curve=st.none() | curves(size),
    )
)


@given(results)
def test_json_gives_back_every_bit(result):
    text = result.to_json()
    json.loads(text, parse_constant=pytest.fail)  # no NaN, which other readers refuse
    back = RunResult.from_json(text)
    assert back.accuracy.dtype == back.baseline.dtype == np.float64
    np.testing.assert_array_equal(back.accuracy, result.accuracy)
    np.testing.assert_array_equal(back.baseline, result.baseline)
    np.testing.assert_equal(back.masked, result.masked)
    assert (back.curve is None) == (result.curve is None)
    if result.curve is not None:
        assert back.curve.iterations == result.curve.iterations
        assert back.curve.trained == result.curve.trained
        np.testing.assert_array_equal(back.curve.accuracy, result.curve.accuracy)
    told = ("method", "stream", "seed", "seconds", "restriction", "configuration", "versions")
    for name in (*told, "metrics", "diverged"):
        assert getattr(back, name) == getattr(result, name)
    assert back.to_json() == text


@given(results)
def test_runs_of_earlier_versions_are_read(result):
    values = json.loads(result.to_json())
    for name in ("metrics", "masked", "diverged", "validation", "curve"):
        values.pop(name, None)
    back = RunResult.from_json(json.dumps(values))
    assert back.metrics == {}
    assert back.masked is None
    assert math.isnan(back.scores["acc_task_il"])
    del values["configuration"]
    told = replace(result, diverged=None).scores
    for name, score in RunResult.from_json(json.dumps(values)).scores.items():
        if name not in ("acc_task_il", "min_acc", "wc_acc"):  # which need more than R
            np.testing.assert_equal(score, told[name])


@given(results)
def test_runs_of_before_divergence_was_looked_for_are_read(result):
    values = json.loads(result.to_json())
    del values["diverged"]
    assert RunResult.from_json(json.dumps(values)).diverged is None


def test_a_run_that_diverged_has_no_scores_whatever_was_measured():
    scores = RunResult("m", "s", 0, np.eye(2), np.zeros(2), 1.0, diverged=1).scores
    assert list(scores) == list(RunResult("m", "s", 0, np.eye(2), np.zeros(2), 1.0).scores)
    assert all(map(math.isnan, scores.values()))


def test_scores_are_those_of_the_matrix():
    R = np.array([[0.6, 0.3, 0.1], [0.9, 0.8, 0.1], [0.5, 0.7, 0.8]])
    baseline, masked = np.array([0.1, 0.2, 0.1]), np.full((3, 3), 0.95)
    scores = RunResult("m", "s", 0, R, baseline, 1.0, masked=masked).scores
    names = ["acc", "bwt", "la", "fwt", "forgetting", "aia", "min_acc", "wc_acc", "acc_task_il"]
    assert list(scores) == names
    assert scores["acc"] == average_accuracy(R)
    assert scores["bwt"] == backward_transfer(R) == pytest.approx(-0.1)
    assert scores["forgetting"] == forgetting(R) == pytest.approx(0.25)
    assert scores["aia"] == pytest.approx((0.6 + 0.85 + 2 / 3) / 3)
    assert scores["min_acc"] == pytest.approx((0.5 + 0.7) / 2)
    assert scores["wc_acc"] == pytest.approx((0.5 + 0.7 + 0.8) / 3)
    assert scores["acc_task_il"] == pytest.approx(0.95)
    assert scores["la"] == learning_accuracy(R)
    assert scores["fwt"] == pytest.approx((0.1 + 0.0) / 2)


def test_the_lowest_accuracies_are_also_those_within_the_experiences():
    run = made(size=3)
    curve = curve_of(run.accuracy)
    scores = RunResult("m", "s", 0, run.accuracy, run.baseline, 1.0, curve=curve).scores
    R = run.accuracy
    lowest = [min(R[1, 0], R[2, 0]) - 0.2, R[2, 1] - 0.2]
    np.testing.assert_allclose(curve.lowest, [*lowest, math.nan])
    assert scores["min_acc"] == pytest.approx(np.mean(lowest))
    assert scores["wc_acc"] == pytest.approx(np.mean([*lowest, R[2, 2]]))
    assert scores["acc"] == run.scores["acc"]


def test_the_lowest_on_validation_data_are_over_its_own_r():
    run = made(size=3, validation=held_out(3))
    watched = replace(run, curve=curve_of(run.accuracy)).on_validation
    assert watched.curve is None
    assert watched.scores["min_acc"] == watched.scores["wc_acc"] == 0.5


def test_a_run_without_a_curve_is_written_as_ever():
    assert "curve" not in json.loads(made().to_json())
