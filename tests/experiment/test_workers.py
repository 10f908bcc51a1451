"""Runs in other processes: the same numbers, and nobody left behind."""

import csv
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dying import Dying
from run_cases import FAILING, specification

from avalanche_mgem.experiment import Method, RunResult
from avalanche_mgem.experiment.workers import (
    WorkerDiedError,
    require_picklable,
    run_here,
    run_in_workers,
)
from avalanche_mgem.results.store import ResultStore

COMMAND = Path(sys.executable).with_name("avalanche-mgem")


@pytest.fixture
def store(tmp_path):
    store = ResultStore(tmp_path / "out")
    store.create()
    return store


def keyed(*specifications):
    return {each.key: each for each in specifications}


def nobody():
    """Whether all workers are gone; who has ended may still have to be taken note of."""
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not multiprocessing.active_children()


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_process_gives_the_same_numbers(store, tmp_path, caplog, jobs):
    runs = keyed(
        specification("mgem-pd"), specification("agem"), specification(FAILING), specification()
    )
    here_store, reports = ResultStore(tmp_path / "here"), []
    here_store.create()
    here = dict(run_here(runs, here_store, lambda *_: None))
    caplog.set_level(logging.INFO, logger="avalanche_mgem")
    there = dict(run_in_workers(runs, store, lambda *report: reports.append(report), jobs))
    assert set(there) == set(here) == set(runs)
    for key, outcome in there.items():
        if key.startswith("failing"):
            assert "[out] of luck" in str(outcome)
            assert "[out] of luck" in str(here[key])
            assert store.load(key) is None
            continue
        np.testing.assert_array_equal(outcome.accuracy, here[key].accuracy)
        assert outcome.restriction == here[key].restriction
        assert outcome.configuration == here[key].configuration
        assert store.load(key).to_json() == outcome.to_json()
        assert [done for name, done in reports if name == key][:1] == [0.25]
    assert "mgem-pd, seed 0: 3 experiences on cpu" in caplog.messages  # it was said in a worker
    assert nobody()


def test_a_worker_that_dies_is_told_and_so_ends_the_rest(store):
    runs = keyed(*(specification(stream=Dying(), seed=seed) for seed in range(3)))
    with pytest.raises(WorkerDiedError, match="a worker process died"):
        list(run_in_workers(runs, store, lambda *_: None, jobs=2))
    assert list(store.runs.iterdir()) == []
    assert nobody()


@pytest.mark.slow
def test_a_caller_that_stops_ends_the_workers(store):
    runs = keyed(*(specification("mgem-d", seed=seed) for seed in range(50)))
    outcomes = run_in_workers(runs, store, lambda *_: None, jobs=2)
    _, first = next(outcomes)
    assert isinstance(first, RunResult)
    outcomes.close()
    assert nobody()
    assert len(list(store.runs.glob("*.json"))) < len(runs)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"stream": lambda seed: None}, "stream of 'naive'"),
        ({"model": lambda shape, classes: None}, "model of 'naive'"),
        ({"method": Method("mine", lambda **_: None)}, "method of 'mine'"),
    ],
)
def test_what_cannot_be_sent_is_named(changes, what):
    with pytest.raises(ValueError, match=f"{what} cannot be sent .* pass jobs=1"):
        require_picklable([specification(), specification(**changes)])


def session_processes(session):
    """The processes of a session that still run: (pid, command line)."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append((int(folder.name), (folder / "cmdline").read_text()))
        except (OSError, ValueError):
            continue
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.fixture
def _heeds_interrupts():
    """Tests that a shell runs in the background ignore them, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("_heeds_interrupts")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("moment", ["starting", "running"])
@pytest.mark.parametrize(
    "stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name
)
def test_a_command_that_is_stopped_leaves_no_process_and_continues(stop, moment, tmp_path):
    out = tmp_path / "out"
    options = "--methods naive,ewc --seeds 5 --jobs 2 --test-per-experience 50"
    command = [COMMAND, "compare", *options.split(), "--out", out]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    ready = 1 if moment == "running" else 0
    wait_until(lambda: len(session_processes(process.pid)) >= 3, 300)
    wait_until(lambda: len(list(out.glob("runs/*.json"))) >= ready, 300)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does
    else:
        os.kill(process.pid, stop)
    _, errors = process.communicate(timeout=300)
    wait_until(lambda: not session_processes(process.pid), 120)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "Stopped. The same command continues.\n"
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*.json")}
    assert ready <= len(finished) < 10
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(out.glob("runs/*.json"))) == 10


def scores_of(out):
    """The table without what no two runs share: the time they took."""
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in r.items() if "seconds" not in k.lower()} for r in rows]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_at_random_moments_it_ends_with_the_same_table(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = "--methods naive,gem,mgem-d --seeds 3 --jobs 2 --test-per-experience 50"
    command = [COMMAND, "compare", *options.split(), "--experiences", "6", "--out"]
    assert subprocess.run([*command, whole], capture_output=True, check=False).returncode == 0
    moments, finished, kills = random.Random(0), {}, 0
    while True:
        process = subprocess.Popen(
            [*command, killed],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=moments.uniform(9.0, 14.0) if kills < 6 else 300.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        assert {path: path.read_bytes() for path in finished} == finished
        finished = {path: path.read_bytes() for path in killed.glob("runs/*.json")}
        if process.returncode == 0:
            break
    assert kills >= 1
    assert scores_of(killed) == scores_of(whole)
