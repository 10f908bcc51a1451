"""Sweeps in several processes, and sweeps that are killed, for the tests of what they share."""

import csv
import io
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

from checkpoint_runs import forked, timed
from rich.console import Console
from run_cases import MODEL, TRAINING, permuted

from avalanche_mgem.experiment import sweep
from avalanche_mgem.report.figures import accuracy, canvas

TRIALS = 5


def swept(folder):
    """A sweep without figures, which take longer than its runs."""
    accuracy.plot_accuracy = accuracy.plot_tradeoff = lambda *_: None
    canvas.png = lambda figure: b""
    sweep(
        ["gem", "mgem-d"],
        stream=permuted,
        seeds=2,
        model=MODEL,
        trials=TRIALS,
        training=replace(TRAINING, validation=0.3),
        sampler="random",
        out=Path(folder) / "out",
        console=Console(file=io.StringIO()),
    )


def at_once(folder, processes):
    """Let several processes sweep in one folder; return what their trials were."""
    children = [forked(lambda: swept(folder)) for _ in range(processes)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
    table = trials_of(folder)
    journal = (Path(folder) / "out" / "sweep" / "studies.journal").read_text()
    workers = {
        line.split('"worker":"')[1][:32] for line in journal.splitlines() if '"worker":"' in line
    }
    return {
        "counted": [row["method"] for row in table].count("gem"),
        "asked for": TRIALS,
        "params": [row["settings.memory_strength"] for row in table if row["method"] == "gem"],
        "workers": len(workers),
    }


def killed_sweeps(folder, kills, seed):
    """Kill sweeps with SIGKILL at random moments and start them again, until one is finished.

    Returns what the trials of one that was not killed were, what those of the killed ones were, and
    how often a trial was asked for again.
    """
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    longest, moments = timed(lambda: swept(whole)), random.Random(seed)
    for _ in range(kills):
        child = forked(lambda: swept(killed))
        time.sleep(moments.uniform(0.0, 0.4) * longest)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    swept(killed)
    again = sum(row["state"] == "fail" for row in trials_of(killed))
    return counted(whole), counted(killed), again


def counted(folder):
    """The trials that count, without their numbers: one that is run again has another."""
    rows = [row for row in trials_of(folder) if row["state"] != "fail"]
    return sorted([{k: v for k, v in row.items() if k != "trial"} for row in rows], key=str)


def trials_of(folder):
    with (Path(folder) / "out" / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))
