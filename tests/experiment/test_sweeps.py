"""Sweeps: what they leave, that they continue, and that no trial is lost or counted twice."""

import csv
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from avalanche.training.supervised import Naive
from checkpoint_runs import in_a_process_of_its_own
from rich.console import Console
from run_cases import MODEL, TRAINING, permuted
from sweeps_at_once import at_once, killed_sweeps

from avalanche_mgem.experiment import (
    METHODS,
    Choices,
    Method,
    Range,
    RunsFailedError,
    find_method,
    load_methods,
    load_results,
    sweep,
)
from avalanche_mgem.experiment import sweeps as module_of_sweeps

STRENGTHS = {"gem": {"memory_strength": Range(0.0, 1.0)}}


@pytest.fixture
def swept(tmp_path, without_figures):
    """sweep() on the tiny stream into a folder of its own; what it printed is in .text."""

    def call(methods="gem", **arguments):
        file = io.StringIO()
        defaults = {
            **{"stream": permuted, "seeds": 2, "model": MODEL, "trials": 3},
            **{"training": replace(TRAINING, validation=0.3), "sampler": "random"},
        }
        try:
            return sweep(
                methods,
                **{**defaults, "out": tmp_path / "out", **arguments},
                console=Console(file=file, width=120),
            )
        finally:
            call.text = file.getvalue()

    return call


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def params_of(out, method="gem", setting="memory_strength"):
    """The settings of the trials that count, in the order in which they began."""
    table = [row for row in rows(out / "trials.csv") if row["method"] == method]
    return [row[f"settings.{setting}"] for row in table if row["state"] != "fail"]


def test_it_chooses_on_validation_data_and_tests_with_other_seeds(swept, tmp_path):
    fronts = swept(["gem", "naive"], trials=4)
    out = tmp_path / "out"
    assert [front.method for front in fronts] == ["gem", "naive"]
    for front in fronts:
        points = [each.validation for each in front.chosen]
        assert points == sorted(points)
        assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
        assert np.isfinite([each.test for each in front.chosen]).all()
        assert front.reference == (0.0, -1.0)
        assert front.hypervolume("validation") > 0
    results = load_results(out)
    assert {run.seed for run in results} == {2, 3}
    assert all(run.validation is None for run in results)
    assert {run.method for run in results} == {m.name for f in fronts for m in f.methods}
    (naive,) = fronts[1].chosen
    scores = [run.scores for run in results if run.method == "naive-trial0"]
    assert naive.test[0] == pytest.approx(np.mean([one["la"] for one in scores]))
    methods = load_methods(out / "best.toml")
    assert [m.name for m in methods] == [m.name for f in fronts for m in f.methods]
    assert [m.settings for m in methods] == [m.settings for f in fronts for m in f.methods]
    table = rows(out / "trials.csv")
    assert [row["method"] for row in table] == ["gem"] * 4 + ["naive"]
    assert float(table[0]["settings.memory_strength"]) == METHODS["gem"].settings["memory_strength"]
    assert rows(out / "fronts.csv")[0]["reference_bwt"] == "-1.0"
    assert (out / "fronts.png").stat().st_size > 10_000
    assert "naive-trial0" in swept.text
    assert not list((out / "sweep" / "workers").iterdir())


def test_the_chosen_dominate_all_others(swept, tmp_path):
    (front,) = swept(trials=6)
    points = [
        (float(row["la"]), float(row["bwt"])) for row in rows(tmp_path / "out" / "trials.csv")
    ]
    chosen = {each.trial for each in front.chosen}
    for number, point in enumerate(points):
        dominated = any(
            all(a >= b for a, b in zip(other, point, strict=True)) and other != point
            for other in points
        )
        assert dominated == (number not in chosen) or point in points[:number]


def test_one_objective_has_one_best(swept, tmp_path):
    (front,) = swept(objective="acc", trials=3)
    (best,) = front.chosen
    values = [float(row["acc"]) for row in rows(tmp_path / "out" / "trials.csv")]
    assert best.validation[0] == max(values)
    assert np.isnan(front.hypervolume("test"))
    assert not (tmp_path / "out" / "fronts.png").exists()


def test_it_continues_and_more_trials_are_added(swept, tmp_path):
    out = tmp_path / "out"
    swept(trials=2)
    first = params_of(out)
    finished = {p: p.stat().st_mtime_ns for p in out.glob("sweep/trials/runs/*")}
    swept(trials=2)
    assert params_of(out) == first
    swept(trials=4)
    assert params_of(out)[:2] == first
    assert len(params_of(out)) == 4
    assert {p: p.stat().st_mtime_ns for p in finished} == finished


def test_stopped_and_continued_it_tries_the_same(swept, tmp_path, monkeypatch):
    swept(out=tmp_path / "whole")
    real, left = module_of_sweeps.outcome_of, [1]

    def stops(future):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(future)

    monkeypatch.setattr(module_of_sweeps, "outcome_of", stops)
    for count in (1, 0, 2):  # finished runs before each stop: within and between trials
        left[0] = count
        with pytest.raises(KeyboardInterrupt):
            swept()
    monkeypatch.undo()
    (front,) = swept()
    assert params_of(tmp_path / "out") == params_of(tmp_path / "whole")
    states = [row["state"] for row in rows(tmp_path / "out" / "trials.csv")]
    assert states.count("complete") == 3
    assert front.chosen


def test_another_setting_makes_other_studies(swept, tmp_path):
    for arguments in ({}, {"objective": "acc"}, {"seeds": 1}, {"space": STRENGTHS}):
        swept(trials=1, **arguments)
    journal = (tmp_path / "out" / "sweep" / "studies.journal").read_text()
    names = [json.loads(line).get("study_name") for line in journal.splitlines()]
    assert len({name for name in names if name}) == 3  # that space is gem's own


def test_spaces_of_a_file_and_fixed_settings(swept, tmp_path):
    path = tmp_path / "space.toml"
    path.write_text('[mgem-d]\nmemory_split = ["random", "class"]\n')
    swept("mgem-d", space=path, settings={"mgem-d": {"memory_groups": 2}})
    table = rows(tmp_path / "out" / "trials.csv")
    assert [name for name in table[0] if name.startswith("settings.")] == ["settings.memory_split"]
    (method, *_) = load_methods(tmp_path / "out" / "best.toml")
    assert method.settings["memory_groups"] == 2


def test_what_is_fixed_is_not_tried(swept, tmp_path):
    swept("mgem-d", settings={"mgem-d": {"memory_strength": 0.25}}, trials=2)
    table = rows(tmp_path / "out" / "trials.csv")
    assert [name for name in table[0] if name.startswith("settings.")] == ["settings.memory_groups"]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "qmc"])
def test_samplers_by_name(sampler, swept, tmp_path):
    swept(sampler=sampler, trials=3, seeds=1)
    assert len(set(params_of(tmp_path / "out"))) == 3


def test_one_objective_may_end_trials_early(swept, tmp_path):
    space = {"ewc": {"ewc_lambda": Choices((10.0, 1e4))}}
    swept("ewc", space=space, objective="la", seeds=6, trials=4)
    states = [row["state"] for row in rows(tmp_path / "out" / "trials.csv")]
    assert len(states) == 4
    assert states[0] == "complete"
    assert set(states) <= {"complete", "pruned"}


def test_trials_that_diverge_are_never_chosen(swept):
    training = replace(TRAINING, validation=0.3, learning_rate=2.0)
    space = {"ewc": {"ewc_lambda": Range(1e11, 1e12, log=True)}}
    with pytest.raises(RunsFailedError, match="ewc: no trial can be chosen: all diverged"):
        swept("ewc", space=space, training=training, trials=1)
    assert "ewc, trial 0: diverged with seed 0" in swept.text


class FailsAbove(Naive):
    """Fails where a setting is large."""

    def __init__(self, *, limit=0.0, **arguments):
        super().__init__(**arguments)
        self.limit = limit

    def train(self, experiences, *args, **kwargs):
        if self.limit > 0.5:
            raise RuntimeError("[out] of luck")
        return super().train(experiences, *args, **kwargs)


def make_failing(limit=0.0, **arguments):
    return FailsAbove(limit=limit, **arguments)


@pytest.fixture
def failing():
    values = Choices((0.1, 0.9))
    METHODS.register(Method("failing", make_failing, {"limit": 0.9}, space={"limit": values}))
    yield "failing"
    del METHODS._methods["failing"]


def test_a_failed_trial_counts_and_is_told(failing, swept, tmp_path):
    (front,) = swept(failing, trials=6)
    table = rows(tmp_path / "out" / "trials.csv")
    assert len(table) == 6
    assert table[0]["state"] == "fail"
    assert table[0]["error"] == "RuntimeError: [out] of luck"
    assert [each.params for each in front.chosen] == [{"limit": 0.1}]
    assert "failing, trial 0: failed: RuntimeError: [out] of luck (limit=0.9)" in swept.text


def test_where_all_fail_the_error_is_told(failing, swept):
    with pytest.raises(RunsFailedError, match=r"failing: no trial can be chosen: .* of luck"):
        swept(failing, trials=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 0}, "trials must be"),
        ({"objective": ["la", "la"]}, "objective must be one or two"),
        ({"space": {"mgem-d": {"memory_groups": Range(2, 4)}}}, "space: unknown 'mgem-d'"),
        ({"space": {"gem": {"strength": Range(0, 4)}}}, "space: gem.strength: no such setting"),
        ({"space": {"gem": {"memory_strength": Range(-1.0, 1.0)}}}, "space: gem refuses"),
        ({"methods": [METHODS["gem"]]}, "methods must be names"),
        ({"jobs": 0}, "jobs must be"),
        ({"checkpoints": "no"}, "checkpoints must be"),
    ],
)
def test_bad_input_is_named_and_leaves_no_folder(swept, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        swept(**arguments)
    assert not (tmp_path / "out").exists()


def test_without_optuna_it_says_how_to_get_it(swept, monkeypatch):
    monkeypatch.setattr("avalanche_mgem.experiment.sweep_plan.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'avalanche-mgem\[sweep\]'"):
        swept()


def test_combinations_are_swept_by_their_own_names(swept, tmp_path):
    swept("replay+migu", trials=1, seeds=1)
    (method,) = load_methods(tmp_path / "out" / "best.toml")
    assert method.name == "replay+migu-trial0"
    assert method.settings == find_method("replay+migu").settings


def test_half_a_line_of_a_process_that_was_killed_is_cut_off(swept, tmp_path):
    swept(trials=1)
    journal = tmp_path / "out" / "sweep" / "studies.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    swept(trials=2)
    assert len(params_of(tmp_path / "out")) == 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")
def test_two_processes_share_the_trials_of_a_sweep(tmp_path):
    told = in_a_process_of_its_own(at_once, str(tmp_path), 2)
    assert told["counted"] == told["asked for"]
    assert len(told["params"]) == len(set(told["params"]))
    assert told["workers"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")
def test_killed_at_random_no_trial_is_lost_or_counted_twice(tmp_path):
    whole, killed, again = in_a_process_of_its_own(killed_sweeps, str(tmp_path), 20, 0)
    assert killed == whole
    assert again > 0
