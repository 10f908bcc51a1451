"""Comparisons that are killed and started again, for the tests of what a stop costs."""

import csv
import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from avalanche.training.supervised import AGEM, Replay
from checkpoint_runs import forked, timed
from rich.console import Console
from run_cases import MODEL, TRAINING
from tiny import tiny_data

from avalanche_mgem import MGEM
from avalanche_mgem.experiment import METHODS, Method, compare
from avalanche_mgem.report.figures import accuracy
from avalanche_mgem.streams import permuted_stream

N_EXPERIENCES, SEEDS = 5, 1
_NOTES = "trained.txt"


class Noting:
    """Notes in the current folder that an experience begins to be trained."""

    def train(self, experiences, *arguments, **options):
        with Path(_NOTES).open("a") as file:
            file.write(f"{type(self).__name__} {experiences.current_experience}\n")
        return super().train(experiences, *arguments, **options)


class NotingAGEM(Noting, AGEM):
    pass


class NotingReplay(Noting, Replay):
    pass


class NotingMGEM(Noting, MGEM):
    pass


_STRATEGIES = {"agem": NotingAGEM, "replay": NotingReplay, "mgem-d": NotingMGEM}
METHODS_THAT_NOTE = [
    Method(name, strategy, METHODS[name].settings) for name, strategy in _STRATEGIES.items()
]
TRAININGS = len(METHODS_THAT_NOTE) * SEEDS * N_EXPERIENCES


def stream(seed):
    return permuted_stream(
        tiny_data(), n_experiences=N_EXPERIENCES, train_per_experience=72, seed=seed
    )


def compared(folder):
    """Compare, or go on, in a folder of its own; no figures, which take longer than the runs."""
    os.chdir(folder)
    accuracy.plot_accuracy = accuracy.plot_tradeoff = lambda *_: None
    console = Console(file=io.StringIO())
    compare(
        METHODS_THAT_NOTE,
        stream=stream,
        seeds=SEEDS,
        model=MODEL,
        training=TRAINING,
        out="out",
        console=console,
    )


def killed_comparisons(folder, kills, seed):
    """Kill comparisons with SIGKILL at random moments and start them again.

    Returns what one that was not killed left, and of each other what it left, how often it was
    killed and how many experiences it began to train.
    """
    folder, moments = Path(folder), random.Random(seed)
    longest = timed(lambda: compared(_new(folder / "whole")))
    whole, ends = left_by(folder / "whole"), []
    while kills:
        place, hits = _new(folder / "killed"), 0
        while True:
            child = forked(lambda place=place: compared(place))
            if kills:
                time.sleep(moments.uniform(0.1, 0.5) * longest)
                os.kill(child, signal.SIGKILL)
            if not os.WIFSIGNALED(status := os.waitpid(child, 0)[1]):
                assert status == 0
                break
            kills, hits = kills - 1, hits + 1
        trained = len((place / _NOTES).read_text().splitlines())
        ends.append({"left": left_by(place), "kills": hits, "trained": trained})
    return whole, ends


def left_by(folder):
    """Return the files of a finished comparison, without what no two share: the time they took."""
    out = folder / "out"
    with (out / "results.csv").open(newline="") as file:
        table = [_untimed(row) for row in csv.DictReader(file)]
    runs = {path.name: _untimed(json.loads(path.read_text())) for path in out.glob("runs/*")}
    metrics = {
        path.name: [line for line in path.read_text().splitlines() if "Seconds" not in line]
        for path in out.glob("metrics/*")
    }
    others = sorted(path.name for path in out.iterdir())
    return {"table": table, "runs": runs, "metrics": metrics, "others": others}


def _untimed(values):
    return {k: v for k, v in values.items() if "seconds" not in k.lower() and "timings" not in k}


def _new(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
