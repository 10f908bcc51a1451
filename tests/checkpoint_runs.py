"""Runs that are saved, killed and continued, for the tests of checkpoints.

`in_a_process_of_its_own(function, *arguments)` calls a function of a test's module in a new Python.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import EvaluationPlugin
from tiny import tiny_data

from avalanche_mgem.checkpoint import frame, load_checkpoint, save_checkpoint
from avalanche_mgem.checkpoint.files import previous_of
from avalanche_mgem.checkpoint.random_states import random_states
from avalanche_mgem.evaluation import AccuracyMatrix
from avalanche_mgem.experiment import MLPFactory, Training, find_method
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.experiment.run import SilentLogger, quiet_avalanche
from avalanche_mgem.files import is_unfinished
from avalanche_mgem.streams import permuted_stream

N_EXPERIENCES = 3
TRAINING = Training(memory=8, batch_size=8, eval_batch_size=64, momentum=0.9, weight_decay=0.01)


def permuted(seed):
    return permuted_stream(
        tiny_data(), n_experiences=N_EXPERIENCES, train_per_experience=16, seed=seed
    )


class Run:
    """A strategy of one of the methods as a script makes it, with a stream and R."""

    def __init__(self, method="naive", *, seed=0, stream=permuted, model=None, training=TRAINING):
        RNGManager.set_random_seeds(seed)
        specification = RunSpecification(
            find_method(method), stream, 0, model or MLPFactory((8,)), training
        )
        self.scenario = stream(0)
        self.accuracy = AccuracyMatrix()
        evaluator = EvaluationPlugin(self.accuracy, loggers=[SilentLogger()])
        with quiet_avalanche():
            self.strategy = build_strategy(specification, self.scenario, evaluator)
        self.parts = list(self.scenario.train_stream)
        if specification.method.whole_stream:
            self.parts = [self.scenario.train_stream]

    def load(self, path, **arguments):
        _, start = load_checkpoint(self.strategy, path, **arguments)
        return start

    def train(self, first=0, last=None, path=None, **arguments):
        """Train on some of the experiences, with a checkpoint after each where a path is given."""
        with quiet_avalanche():
            for part in self.parts[first:last]:
                self.strategy.train(part)
                self.strategy.eval(self.scenario.test_stream)
                if path is not None:
                    save_checkpoint(self.strategy, path, **arguments)
        return self

    def outcome(self):
        """Everything that a continued run must have in common with one that was never stopped."""
        return {
            "parameters": digest(self.strategy.model.state_dict()),
            "optimiser": digest(self.strategy.optimizer.state_dict()),
            "accuracy": digest(self.accuracy.result("test")),
            "metrics": digest(dict(self.strategy.evaluator.all_metric_results)),
            "random states": digest(random_states()),
        }


def digest(value):
    """A digest over all numbers, to the bit, in a tree of dicts, lists and arrays."""
    total = hashlib.sha256()

    def add(part):
        if isinstance(part, dict):
            part = [list(pair) for pair in part.items()]
        if isinstance(part, list | tuple):
            total.update(f"{len(part)}[".encode())
            for each in part:
                add(each)
        elif isinstance(part, torch.Tensor):
            add(part.detach().numpy())
        elif isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
        else:
            assert isinstance(part, str | int | float | None), type(part)
            total.update(repr(part).encode())

    add(value)
    return total.hexdigest()[:16]


def in_a_process_of_its_own(function, *arguments):
    """Call a function of a module here in a new Python; arguments and what it returns are JSON."""
    imports = f"import sys, checkpoint_runs, {function.__module__} as module"
    code = f"{imports}; checkpoint_runs.answer(module.{function.__name__}, sys.argv[1])"
    here = str(Path(__file__).parent)
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def answer(function, arguments):
    torch.set_num_threads(1)
    print(json.dumps(function(*json.loads(arguments))))


def continued(folder, methods):
    """Go on with the checkpoint of each method; return {method: outcome}."""
    outcomes = {}
    for method in methods:
        run = Run(method, seed=99)  # another seed: everything must come from the file
        start = run.load(Path(folder) / method)
        outcomes[method] = run.train(start).outcome()
    return outcomes


def continued_and_killed(folder, methods, often_killed):
    """Go on with some methods' checkpoints, then kill runs of others three times each."""
    return continued(folder, methods), killed(folder, often_killed, kills=3, seed=0)


def killed(folder, methods, kills, seed):
    """Kill runs with SIGKILL at random moments until they are done, again and again.

    kills: how often, for each method. Returns {method: [outcomes of the runs that finished]} and
    how many kills hit a run, and how many of those came in the midst of saving.
    """
    numbers = random.Random(seed)
    outcomes, hits, in_saving = {}, 0, 0
    for method in methods:
        path = Path(folder) / f"{method}.killed"
        longest = timed(lambda path=path, method=method: attempt(method, path))
        outcomes[method], left = [], kills
        while left or not path.with_suffix(".json").exists():
            if finished := take_outcome(path):
                outcomes[method].append(finished)
            child = forked(lambda path=path, method=method: attempt(method, path))
            if left:
                left -= 1
                time.sleep(numbers.uniform(0, longest))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                hits += 1
                in_saving += any(is_unfinished(p, path.name) for p in path.parent.iterdir())
            else:
                assert status == 0
        outcomes[method].append(take_outcome(path))
    return {"outcomes": outcomes, "hits": hits, "in saving": in_saving}


def attempt(method, path):
    """One start of a script that trains with checkpoints: it goes on, or tells that it is done."""
    run = Run(method, seed=0)
    run.train(run.load(path), path=path)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(run.outcome()))
    unfinished.replace(path.with_suffix(".json"))


def take_outcome(path):
    """Return what a finished run told, and make room for the next."""
    told = path.with_suffix(".json")
    if not told.exists():
        return None
    outcome = json.loads(told.read_text())
    for each in (told, path, previous_of(path)):
        each.unlink(missing_ok=True)
    return outcome


def timed(function):
    start = time.perf_counter()
    assert os.waitpid(forked(function), 0)[1] == 0
    return time.perf_counter() - start


def forked(function):
    """Call a function in a copy of this process; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function()
        code = 0
    finally:
        os._exit(code)


def killed_at_every_line(folder):
    """Save for the third time, killed before every line of the code that writes files, in turn.

    Returns what is at path and at its previous after each: the number of finished experiences.
    """
    path = Path(folder) / "run"
    run = Run().train(0, 2, path)
    kept = {each: each.read_bytes() for each in (path, previous_of(path))}
    run.train(2)
    found = []
    while True:
        for each in path.parent.iterdir():
            each.unlink()
        for each, content in kept.items():
            each.write_bytes(content)
        child = forked(lambda: killed_before_line(len(found), run.strategy, path))
        done = os.WIFEXITED(os.waitpid(child, 0)[1])
        found.append([finished_at(path), finished_at(previous_of(path))])
        if done:
            return found


def killed_before_line(number, strategy, path):
    code = ("files.py", "frame.py", "saving.py")
    lines, met = 0, Counter()

    def trace(frame_, event, _):
        nonlocal lines
        file, function = Path(frame_.f_code.co_filename), frame_.f_code.co_name
        if file.parent.name != "checkpoint" or file.name not in code or function == "write":
            return None  # one write to the unfinished file is like another
        place = file.name, frame_.f_lineno
        if event == "line" and met[place] < 2:  # of a loop, the first two rounds
            if lines == number:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
            met[place] += 1
        return trace

    sys.settrace(trace)
    save_checkpoint(strategy, path)


def finished_at(path):
    with frame.open_frame(path) as (told, _):
        return told["finished_experiences"]
