"""Comparisons: what they leave, that they continue, and that failures lose nothing else."""

import csv
import io
from importlib import import_module

import numpy as np
import pytest
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from rich.console import Console
from run_cases import FAILING, MODEL, TRAINING, growing_model, permuted, split
from torch import nn

from avalanche_mgem.experiment import (
    DEFAULT_METHODS,
    METHODS,
    Method,
    NamedStream,
    RunResult,
    RunsFailedError,
    Training,
)
from avalanche_mgem.experiment import compare as real_compare
from avalanche_mgem.experiment.workers import WorkerDiedError, run_here


@pytest.fixture
def compare(tmp_path, without_figures):
    """compare() on the tiny stream into a folder of its own; what it printed is in .text."""

    def call(methods=("naive", "gem"), **arguments):
        file = io.StringIO()
        defaults = {"stream": permuted, "seeds": 2, "model": MODEL, "training": TRAINING}
        try:
            return real_compare(
                methods,
                **{**defaults, "out": tmp_path / "out", **arguments},
                console=Console(file=file, width=100),
            )
        finally:
            call.text = file.getvalue()

    return call


def finished(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_leaves_a_table_plots_and_logs(compare, tmp_path, monkeypatch):
    monkeypatch.undo()  # with its figures
    results = compare(["naive", "mgem-d"], seeds=[4, 2])
    out = tmp_path / "out"
    order = [("naive", 4), ("naive", 2), ("mgem-d", 4), ("mgem-d", 2)]
    assert [(result.method, result.seed) for result in results] == order
    table = rows(out / "results.csv")
    assert [(row["method"], int(row["seed"])) for row in table] == order
    assert [float(row["acc"]) for row in table] == [result.scores["acc"] for result in results]
    assert len(rows(out / "accuracy.csv")) == 4 * 9
    for name in ("accuracy.png", "tradeoff.png"):
        assert (out / name).read_bytes()[1:4] == b"PNG"
    assert len(finished(out)) == len(list((out / "metrics").iterdir())) == 4
    assert len(list((out / "tensorboard").glob("*/events*"))) == 4
    assert "mgem-d, seed 2: ACC" in compare.text
    assert "Forgetting" in compare.text
    assert compare.text.count("training ") == 1  # one bar, at the end, where nobody watches


def test_it_continues_and_leaves_what_is_finished_alone(compare, tmp_path, monkeypatch):
    first = compare(["naive"])
    done = finished(tmp_path / "out")
    more = compare(["naive", "gem"], seeds=3)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(finished(tmp_path / "out")) == 6
    assert "2 of 6 runs are finished already." in compare.text
    monkeypatch.setattr(Naive, "train", lambda *_: pytest.fail("trained"))
    again = compare(["naive"])
    assert [r.to_json() for r in again] == [r.to_json() for r in first]
    assert [r.to_json() for r in more[:2]] == [r.to_json() for r in first]


def test_what_is_finished_needs_no_data(compare, tmp_path):
    data = {f"x_{part}": np.random.default_rng(0).random((12, 4)) for part in ("train", "test")}
    data |= {f"y_{part}": np.arange(12) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **data)
    stream = NamedStream("permuted:mine.npz", {"n_experiences": 2, "data_root": str(tmp_path)})
    results = compare("naive", stream=stream)
    assert [result.accuracy.shape for result in results] == [(2, 2)] * 2
    assert results[0].stream == "permuted:mine.npz"


def test_a_changed_setting_makes_a_new_run(compare, tmp_path):
    compare(["gem"], seeds=1)
    compare(["gem"], seeds=1, settings={"gem": {"memory_strength": 0.1}})
    compare(["gem"], seeds=1, training=Training(memory=5, batch_size=8))
    compare(["gem"], seeds=1, stream=split)
    assert len(finished(tmp_path / "out")) == 4


class HalfRate(SupervisedPlugin):
    """Halves every gradient."""

    def before_update(self, strategy, **kwargs):
        for parameter in strategy.model.parameters():
            parameter.grad.mul_(0.5)


def half_rate(*, share=0.5, **arguments):
    return Naive(**arguments, plugins=[HalfRate()])


def flat_model(sample_shape, n_classes):
    return nn.Linear(sample_shape[0], n_classes)


def test_methods_streams_and_models_of_ones_own(compare):
    def two_experiences(seed):
        return NamedStream(
            "permuted-digits",
            {"n_experiences": 2, "train_per_experience": 20, "test_per_experience": 20},
        )(seed)

    mine = Method("half [rate]", half_rate, {"share": 0.5})
    results = compare(
        ["naive", mine],
        seeds=1,
        stream=two_experiences,
        model=lambda shape, classes: nn.Sequential(nn.Flatten(), flat_model((64,), classes)),
    )
    assert [result.method for result in results] == ["naive", "half [rate]"]
    assert results[1].configuration["settings"] == {"share": 0.5}
    assert results[1].stream == "two_experiences"
    assert not np.array_equal(results[0].accuracy, results[1].accuracy)
    np.testing.assert_array_equal(results[0].baseline, results[1].baseline)
    assert "half [rate], seed 0: ACC" in compare.text


def test_growing_heads_are_compared_without_fwt(compare):
    results = compare(seeds=1, stream=split, model=growing_model)
    assert all(np.isnan(result.scores["fwt"]) for result in results)


def test_a_failure_is_named_and_loses_nothing_else(compare, tmp_path):
    with pytest.raises(RunsFailedError, match=r"2 runs failed:\nfailing-seed0.*\[out\] of luck"):
        compare(["naive", FAILING, "gem"])
    table = rows(tmp_path / "out" / "results.csv")
    assert [row["method"] for row in table] == ["naive", "naive", "gem", "gem"]
    assert "failing, seed 1 failed: RuntimeError: [out] of luck" in compare.text
    assert len(compare(["naive", "gem"])) == 4
    assert "4 of 4 runs are finished already." in compare.text


def test_a_dead_worker_is_told_and_loses_nothing_else(compare, tmp_path, monkeypatch):
    def one_and_then_death(runs, store, report, jobs, *, checkpoints):
        yield next(run_here(runs, store, report))
        raise WorkerDiedError

    module = import_module("avalanche_mgem.experiment.comparison")
    monkeypatch.setattr(module, "run_in_workers", one_and_then_death)
    with pytest.raises(RunsFailedError, match=r"3 of 4 runs are not finished: a worker process"):
        compare(jobs=2)
    assert len(rows(tmp_path / "out" / "results.csv")) == len(finished(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jobs": 0}, "jobs must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": []}, "seeds must name"),
        ({"seeds": [1, 1]}, "seeds must name"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"seeds": "3"}, "seeds must be"),
        ({"methods": "mgem-dd"}, "did you mean 'mgem-d'"),
        ({"methods": []}, "at least one method"),
        ({"stream": NamedStream("permuted-digit")}, "did you mean 'permuted-digits'"),
        ({"stream": NamedStream("permuted-digits", {"n_experience": 3})}, "n_experience"),
        ({"settings": {"gem": {"gamma": 1}}}, r"gem\.gamma"),
        ({"settings": {"gem": {"memory_strength": "high"}}}, r"gem\.memory_strength"),
        ({"training": Training(device="cuda:99")}, "device='cuda:99'"),
        ({"jobs": 2, "stream": lambda seed: None}, "stream of 'naive' cannot be sent"),
        ({"methods": "mgem-d", "training": Training(memory=4)}, r"mgem-d\.memory_groups=8"),
    ],
)
def test_bad_input_is_named_and_leaves_no_folder(compare, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_folder_already_is_respected(compare, tmp_path):
    compare("naive", seeds=1)
    (path,) = finished(tmp_path / "out")
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=rf"{path.name} is not a whole result"):
        compare()
    assert len(finished(tmp_path / "out")) == 1
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        compare(out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "out"]


def test_one_experience_is_shown_without_transfer(compare):
    stream = NamedStream("permuted-digits", {"n_experiences": 1, "train_per_experience": 10})
    (result,) = compare("mgem-d", seeds=1, stream=stream)
    assert isinstance(result, RunResult)
    assert np.isnan(result.scores["bwt"])
    assert "nan" not in compare.text


def test_the_default_is_what_one_pass_over_the_data_is_enough_for():
    assert real_compare.__kwdefaults__["seeds"] == 3
    assert real_compare.__defaults__ == (DEFAULT_METHODS,)
    assert set(DEFAULT_METHODS) < set(METHODS)
