"""What a run leaves behind, and its JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avalanche_mgem.evaluation import average_accuracy, backward_transfer, learning_accuracy
from avalanche_mgem.experiment import RunResult

accuracy = st.floats(0, 1) | st.just(math.nan)
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
    told = ("method", "stream", "seed", "seconds", "restriction", "configuration", "versions")
    for name in (*told, "metrics", "diverged"):
        assert getattr(back, name) == getattr(result, name)
    assert back.to_json() == text


@given(results)
def test_runs_of_before_there_were_metrics_are_read(result):
    values = json.loads(result.to_json())
    del values["metrics"]
    assert RunResult.from_json(json.dumps(values)).metrics == {}


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
    R, baseline = np.array([[0.9, 0.3], [0.5, 0.8]]), np.array([0.1, 0.2])
    scores = RunResult("m", "s", 0, R, baseline, 1.0).scores
    assert list(scores) == ["acc", "bwt", "la", "fwt", "forgetting"]
    assert scores["acc"] == average_accuracy(R)
    assert scores["bwt"] == backward_transfer(R) == -scores["forgetting"]
    assert scores["la"] == learning_accuracy(R)
    assert scores["fwt"] == pytest.approx(0.1)
