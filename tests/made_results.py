"""Finished runs that nobody trained."""

import numpy as np

from avalanche_mgem.evaluation.curve import AccuracyCurve
from avalanche_mgem.results.result import HeldOut, RunResult
from avalanche_mgem.results.store import ResultStore


def made(method="gem", seed=0, size=3, **fields):
    """R with what forgets a little, a configuration and versions as a comparison writes them."""
    random = np.random.default_rng([seed, size, *method.encode()])
    values = {
        "stream": "permuted-digits",
        "accuracy": np.tril(random.uniform(0.5, 0.9, (size, size)))
        + np.triu(np.full(size, 0.1), 1),
        "baseline": np.full(size, 0.1),
        "seconds": 2.5,
        "configuration": configuration(seed=seed, n_experiences=size),
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
    }
    return RunResult(method=method, seed=seed, **{**values, **fields})


def configuration(seed=0, n_experiences=3, stream="permuted-digits", training=None, **settings):
    arguments = {"n_experiences": n_experiences}
    return {
        "strategy": "avalanche_mgem.strategies.MGEM",
        "settings": {"memory_strength": 0.5, **settings},
        "stream": {"type": "NamedStream", "name": stream, "arguments": arguments},
        "seed": seed,
        "model": "MLPFactory(hidden=(100, 100))",
        "training": {"learning_rate": 0.1, "device": "cpu", **(training or {})},
    }


def curve(accuracy, iterations=10, every=2):
    """Evaluations within the experiences of a run with that R: each task dips before it is over."""
    size, points = len(accuracy), []
    for task in range(size):
        for step in range(every, iterations, every):
            row = np.where(np.arange(size) <= task, accuracy[task] - 0.2, np.nan)
            points.append((task * iterations + step, task + 1, row))
        points.append(((task + 1) * iterations, task + 1, accuracy[task]))
    iterations, trained, rows = zip(*points, strict=True)
    return AccuracyCurve(list(iterations), list(trained), np.array(rows))


def held_out(size=3, level=0.5):
    """What was measured on validation data: all the same."""
    R = np.full((size, size), level)
    return HeldOut(accuracy=R, baseline=np.full(size, 0.1), masked=R)


def joint(seed=0, size=3):
    """Trained on everything at once: only the last row of R is there."""
    accuracy = np.full((size, size), np.nan)
    accuracy[-1] = 0.9
    return made("joint", seed, size, accuracy=accuracy, baseline=np.full(size, np.nan))


def many(methods=("naive", "gem"), seeds=2, size=3, **fields):
    return [made(method, seed, size, **fields) for method in methods for seed in range(seeds)]


def saved(folder, results):
    """The results folder of a comparison that left these runs."""
    store = ResultStore(folder)
    store.create()
    for index, run in enumerate(results):
        store.save(f"{run.method}-seed{run.seed}-{index}", run)
    return store.folder


def make(method="gem", seed=0, level=0.8, size=3, **fields):
    accuracy = np.full((size, size), level) + np.tril(
        np.random.default_rng([seed, size]).normal(0, 0.05, (size, size))
    )
    values = {"stream": "rotations", "baseline": np.full(size, 0.1), "seconds": 12.5, **fields}
    return RunResult(method=method, seed=seed, **{"accuracy": accuracy, **values})


def make_many():
    methods = ["naive", "gem", "mgem-pd-approx"]
    return [make(m, s, 0.5 + 0.1 * i) for s in range(3) for i, m in enumerate(methods)]
