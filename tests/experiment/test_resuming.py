"""Runs that are stopped: they resume after their last finished experience, or start over."""

import logging
import os

import numpy as np
import pytest
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from checkpoint_runs import in_a_process_of_its_own
from killed_comparisons import TRAININGS, killed_comparisons
from run_cases import MODEL, TRAINING, growing_model, specification, split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_mgem.checkpoint.files import previous_of
from avalanche_mgem.experiment import Method, Training
from avalanche_mgem.experiment.workers import Keeps, run_and_save
from avalanche_mgem.results.store import ResultStore


class Stopped(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture
def store(tmp_path):
    store = ResultStore(tmp_path / "out")
    store.create()
    return store


def started(run, store, *, stop=None, checkpoints=True):
    """Do a run, or stop it when that share of it is done; return (result, shares reported)."""
    shares = []

    def report(_, done):
        shares.append(done)
        if done == stop:
            raise Stopped

    try:
        result = run_and_save(run.key, run, store.folder, report, Keeps(checkpoints))
    except Stopped:
        result = None
    return result, shares


def to_the_bit(result):
    text = result.to_json().split("\n")
    timed = ("seconds", "Seconds")
    return [line for line in text if not any(word in line for word in timed)]


def log_lines(path):
    return [line for line in path.read_text().splitlines() if "Seconds" not in line]


CASES = {
    "mgem-d": {},
    "agem": {},
    "replay+migu": {},
    "ewc": {"stream": split, "model": growing_model},
    "mgem-d+migu": {
        "training": Training(
            memory=16, precision="fp16", accumulate=2, clip=1.0, schedule="cosine", momentum=0.5
        )
    },
    "gdumb": {"training": Training(memory=16, batch_size=8, validation=0.2, eval_every=2)},
}


@pytest.mark.parametrize("name", CASES)
def test_it_resumes_where_it_was_saved_to_the_bit(name, store, tmp_path):
    run = specification(name, **CASES[name])
    whole_store = ResultStore(tmp_path / "whole")
    whole_store.create()
    whole, shares = started(run, whole_store)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert started(run, store, stop=0.75) == (None, [0.25, 0.5, 0.75])
    assert store.checkpoint(run.key).exists()
    result, shares = started(run, store)
    assert shares == [0.75, 1.0]
    assert to_the_bit(result) == to_the_bit(whole)
    assert result.seconds > 0
    assert list(store.checkpoint(run.key).parent.iterdir()) == []
    assert log_lines(store.metrics_csv(run.key)) == log_lines(whole_store.metrics_csv(run.key))


def test_the_log_of_tensorboard_has_each_value_once(store):
    run = specification("naive")
    for stop in (0.75, None):
        started(run, store, stop=stop)
    values = EventAccumulator(str(store.tensorboard(run.key))).Reload()
    steps = [event.step for event in values.Scalars("ACC/eval_phase/test_stream")]
    assert len(steps) == len(set(steps)) == 4


def test_what_was_written_after_the_checkpoint_is_written_again(store):
    run = specification("naive")
    started(run, store, stop=0.75)
    log = store.metrics_csv(run.key)
    saved = log.read_bytes()
    log.write_bytes(saved + b"ACC,9,0.5\r\n")  # by the experience that was not finished
    (store.tensorboard(run.key) / "events.out.tfevents.9.later").write_bytes(b"half a rec")
    started(run, store)
    assert log.read_bytes().startswith(saved)
    assert b"ACC,9,0.5" not in log.read_bytes()
    assert not list(store.tensorboard(run.key).glob("*later"))


@pytest.mark.parametrize("damage", ["cut", "another run", "empty"])
def test_a_checkpoint_that_is_of_no_use_starts_the_run_over(damage, store, caplog):
    run, other = specification("mgem-d"), specification("mgem-d", seed=1)
    for each in (run, other):
        started(each, store, stop=0.75)
    path = store.checkpoint(run.key)
    if damage == "another run":
        content = store.checkpoint(other.key).read_bytes()
    else:
        content = path.read_bytes()[: 100 if damage == "cut" else 0]
    for each in (path, previous_of(path)):
        each.write_bytes(content)
    result, shares = started(run, store)
    assert shares[-4:] == [0.25, 0.5, 0.75, 1.0]
    assert f"{run.key} starts over" in caplog.text
    assert to_the_bit(result) == to_the_bit(started(run, store, checkpoints=False)[0])
    assert [each.name for each in path.parent.iterdir() if run.key in each.name] == []


def test_the_checkpoint_before_serves_where_the_newest_is_damaged(store, caplog):
    run = specification("naive")
    started(run, store, stop=0.75)
    store.checkpoint(run.key).write_bytes(b"")
    result, shares = started(run, store)
    assert shares == [0.5, 0.75, 1.0]
    assert "the checkpoint before it is loaded" in caplog.text
    assert to_the_bit(result) == to_the_bit(started(run, store, checkpoints=False)[0])


def test_other_settings_never_resume_it(store):
    started(specification("mgem-d"), store, stop=0.75)
    for other in (
        specification("mgem-p"),
        specification("mgem-d", seed=1),
        specification("mgem-d", training=Training(memory=16, batch_size=8, learning_rate=0.2)),
    ):
        assert started(other, store)[1][0] == 0.25


def test_without_checkpoints_nothing_is_saved_and_it_starts_over(store):
    run = specification("naive")
    started(run, store, stop=0.75, checkpoints=False)
    assert not store.has_checkpoint(run.key)
    assert started(run, store, checkpoints=False)[1][0] == 0.25


class Unsaved(SupervisedPlugin):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.view = memoryview(b"")


def unsaved(**arguments):
    return Naive(plugins=[Unsaved()], **arguments)


def test_a_method_that_cannot_be_saved_is_named_and_starts_over(store, caplog):
    run = specification(Method("mine", unsaved))
    started(run, store, stop=0.75)
    assert len(caplog.messages) == 1  # not after each experience
    assert "mine, seed 0: no checkpoint can be saved" in caplog.text
    assert "plugins[0].view (Unsaved)" in caplog.text
    assert started(run, store)[1] == [0.25, 0.5, 0.75, 1.0]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(store, caplog, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avalanche_mgem.experiment.resuming.save_checkpoint", full)
    result, _ = started(specification("naive"), store)
    assert np.isfinite(result.scores["acc"])
    assert "No space left" in caplog.text


def test_a_run_of_the_whole_stream_has_nothing_to_resume(store):
    assert started(specification("joint"), store)[1] == [0.5, 1.0]
    assert not (store.folder / "checkpoints").exists()


def test_messages_of_a_resumed_run(store, caplog):
    caplog.set_level(logging.INFO, logger="avalanche_mgem")
    run = specification("naive", training=TRAINING, model=MODEL)
    started(run, store, stop=0.5)
    started(run, store)
    assert "naive, seed 0: resumes at experience 1" in caplog.messages


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")
@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 20])
def test_killed_at_random_it_leaves_what_it_would_have_left(kills, tmp_path):
    whole, ends = in_a_process_of_its_own(killed_comparisons, str(tmp_path), kills, kills)
    assert "checkpoints" not in whole["others"]
    for end in ends:
        assert end["left"] == whole
        assert TRAININGS <= end["trained"] <= TRAININGS + end["kills"]
    assert sum(end["kills"] for end in ends) == kills
