"""Runs with validation data: scored beside the test data, and not trained on."""

import csv
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from data_sets import by_classes
from rich.console import Console
from run_cases import STREAMS, TRAINING, growing_model, specification
from torch.utils.data import TensorDataset

from avalanche_mgem.experiment import FixedStream, Method, MLPFactory, Training, compare
from avalanche_mgem.experiment.run import run
from avalanche_mgem.results.csv import write_csv
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.streams import scenario_from_datasets

HELD_OUT = replace(TRAINING, validation=0.25)


@pytest.mark.parametrize("share", [0.0, 0, np.float32(0)])
def test_without_a_share_nothing_is_told_of_it(share):
    plain, none = specification(), specification(training=replace(TRAINING, validation=share))
    assert plain.key == none.key
    assert "validation" not in plain.description()["training"]
    result = run(none)
    assert result.validation is None
    assert "validation" not in result.to_json()
    assert result.validation_scores == {}
    assert specification(training=HELD_OUT).key != plain.key


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan"), "0.1", 2])
def test_a_share_is_below_one(share):
    with pytest.raises(ValueError, match="validation must be"):
        Training(validation=share)


@pytest.mark.parametrize("stream", sorted(STREAMS))
@pytest.mark.parametrize("method", ["naive", "replay", "mgem-d", "joint"])
def test_validation_is_scored_as_the_test_is(stream, method):
    result = run(specification(method, stream=STREAMS[stream], training=HELD_OUT))
    held_out = result.validation
    for name in ("accuracy", "baseline", "masked"):
        measured, other = getattr(held_out, name), getattr(result, name)
        assert measured.shape == other.shape
        np.testing.assert_array_equal(np.isnan(measured), np.isnan(other))
    assert list(result.validation_scores) == [f"validation_{name}" for name in result.scores]
    on_validation = replace(result, **vars(held_out), validation=None)
    np.testing.assert_equal(
        list(result.validation_scores.values()), list(on_validation.scores.values())
    )


def test_scores_are_those_of_the_samples_that_were_held_out():
    spec = specification("naive", stream=STREAMS["split"], training=HELD_OUT)
    strategies = []

    class Keeping(Naive):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            strategies.append(self)

    result = run(replace(spec, method=Method("keeping", Keeping)))
    model, scenario = strategies[-1].model.eval(), spec.scenario()
    for i, experience in enumerate(scenario.validation_stream):
        x, y, _ = (
            torch.tensor(c) if i else torch.stack(c)
            for i, c in enumerate(zip(*experience.dataset, strict=True))
        )
        right = (model(x).argmax(1) == y).float().mean()
        assert result.validation.accuracy[-1, i] == pytest.approx(float(right))


class Watching(SupervisedPlugin):
    """Notes which samples are trained on, from whatever memory they come."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def before_forward(self, strategy, **kwargs):
        self.seen |= {tuple(row) for row in strategy.mb_x.tolist()}


@pytest.mark.parametrize("method", ["naive", "replay", "gdumb", "cumulative", "mgem-d"])
def test_no_sample_that_is_held_out_is_trained_on(method):
    spec = specification(method, stream=STREAMS["split"], training=HELD_OUT)
    seen, make = set(), spec.method.strategy

    def watched(**arguments):
        strategy = make(**arguments)
        strategy.plugins.append(Watching(seen))
        return strategy

    run(replace(spec, method=replace(spec.method, strategy=watched)))
    scenario = spec.scenario()
    held_out = {tuple(x.tolist()) for e in scenario.validation_stream for x, *_ in e.dataset}
    trained = {tuple(x.tolist()) for e in scenario.train_stream for x, *_ in e.dataset}
    assert not seen & held_out
    assert seen <= trained


@pytest.mark.parametrize("heads", ["single", "growing", "multi"])
def test_all_kinds_of_heads_and_streams_of_ones_own(heads):
    pairs = by_classes(TensorDataset)
    own = scenario_from_datasets(*zip(*pairs, strict=True), task_labels=True)
    for stream in (FixedStream(own), lambda seed: own):
        spec = specification(stream=stream, model=MLPFactory((8,), heads=heads), training=HELD_OUT)
        result = run(spec)
        lower = np.tril(np.ones((3, 3), dtype=bool))
        assert np.isfinite(result.validation.accuracy[lower]).all()


def test_a_growing_head_is_not_grown_by_validation():
    spec = specification(stream=STREAMS["split"], model=growing_model, training=HELD_OUT)
    result = run(spec)
    assert np.isnan(result.validation.accuracy[0, 1:]).all()


def test_a_result_is_written_and_read_again(tmp_path):
    result = run(specification(stream=STREAMS["split"], model=growing_model, training=HELD_OUT))
    again = RunResult.from_json(result.to_json())
    np.testing.assert_equal(vars(again.validation), vars(result.validation))
    assert again.to_json() == result.to_json()
    np.testing.assert_equal(again.validation_scores, result.validation_scores)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("without_figures")
def test_tables_have_both_and_files_the_columns(tmp_path):
    said = StringIO()
    arguments = {"stream": STREAMS["permuted"], "model": MLPFactory((8,)), "seeds": 2}
    results = compare(
        ["naive", "gem"],
        training=HELD_OUT,
        out=tmp_path / "out",
        console=Console(file=said, width=120),
        **arguments,
    )
    assert "permuted, validation data" in said.getvalue()
    row = rows(tmp_path / "out" / "results.csv")[0]
    assert float(row["validation_acc"]) == results[0].validation_scores["validation_acc"]
    assert float(row["validation_bwt"]) == results[0].validation_scores["validation_bwt"]
    assert float(row["acc"]) == results[0].scores["acc"]
    assert row["configuration.training.validation"] == "0.25"
    assert "validation_seconds" not in row
    plain = run(specification())
    write_csv([plain], tmp_path / "plain.csv")
    assert "validation" not in (tmp_path / "plain.csv").read_text()
    write_csv([plain, results[0]], tmp_path / "both.csv")
    both = [each["validation_acc"] for each in rows(tmp_path / "both.csv")]
    assert both == ["", row["validation_acc"]]
