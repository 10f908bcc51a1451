"""The update-magnitude paper's streams of images, at a size that two cores bear.

    python benchmarks/papers/hybrid.py rates --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py choose --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py stream split-cifar100 --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py stream permuted-mnist --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py stream correlated-cifar100 --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py tune STREAM --data-root DIR --out TUNING
    python benchmarks/papers/hybrid.py magnitudes STREAM --tuning TUNING --data-root DIR --out DIR

Initialized, frozen and hybrid (adaptive) training of arXiv 2602.20796: 10 tasks, a network of 9
blocks of convolutions, of 8 to 64 channels here, batches of 10, SGD. CIFAR-100: 2,000 training and
500 test images a task, 5 epochs, a head a task; correlated: 18 classes a task, 9 of them those of
the task before. MNIST: as many, one epoch, one head.

The paper leaves the learning rate and most arguments of the hybrid open. `rates` trains initialized
at several rates and `choose` frozen and hybrid with many arguments, both on Split CIFAR-100 with a
seed that `stream` does not use; what was chosen there is written below and kept for every stream.

`tune` and `magnitudes` are about how far the body goes, by steps that shrink with the number of
tasks, on those streams and on alternating-cifar100 and alternating-mnist (alternating.py), at half
the images. `tune` trains initialized, frozen and decay at several rates with seeds of its own, and
says which is best for each, and at which rate initialized training moves the weights as far in all
as decay does. `magnitudes` trains all methods at these rates with fresh seeds, and two controls:
initialized at that smaller rate, and a decay of the heads as well. Results lie in TUNING/STREAM and
DIR/STREAM; hybrid_table.py compares them. Stop whatever you like; the same command continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import typer
from alternating import AlternatingStream

from avalanche_mgem.experiment import (
    METHODS,
    Method,
    NamedStream,
    RunResult,
    SlimResNet18Factory,
    Training,
    compare,
    load_results,
    write_report,
)

RATES = (0.1, 0.3, 1.0)
RATE = 0.3
CHOOSING = [100]  # the seed
CIFAR: dict[str, Any] = {
    "n_experiences": 10,
    "train_per_experience": 2000,
    "test_per_experience": 500,
    "task_labels": True,
}
MNIST: dict[str, Any] = {**CIFAR, "task_labels": False}
STREAMS: dict[str, dict[str, Any]] = {
    "split-cifar100": CIFAR,
    "permuted-mnist": MNIST,
    "correlated-cifar100": {**CIFAR, "shared_classes": 0.5},
}

TUNING_SEEDS = (200, 201)
FRESH = (30, 31, 32, 33, 34)
TUNING_RATES = (0.03, 0.1, 0.3, 1.0)
ALTERNATING = {"alternating-cifar100": "cifar100", "alternating-mnist": "mnist"}
# Above the cosines of unrelated tasks and below those of related ones, with one head for all.
THRESHOLD = 0.25

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

DataRoot = Annotated[Path, typer.Option(help="Folder of the data sets.")]
Out = Annotated[Path, typer.Option(help="Results folder.")]
Jobs = Annotated[int, typer.Option(help="Processes at once.")]
Only = Annotated[list[str] | None, typer.Option(help="Methods by pattern; repeatable.")]
Tasks = Annotated[int, typer.Option(min=2, help="How many.")]
Images = Annotated[int, typer.Option(min=1, help="Training images a task; half as many test it.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="5, or 1 with MNIST, unless given.")]


def initialized(name: str) -> Method:
    """Everything trains, and the plugin measures how the tasks' gradients point."""
    # A cosine is never above 1: below this threshold every module trains.
    return hybrid(name, threshold=2.0, low=0)


def frozen(name: str, low: int) -> Method:
    return METHODS["frozen"].variant(name, low=low)


def hybrid(name: str, **settings: Any) -> Method:
    return METHODS["hybrid"].variant(name, **settings)


def candidates() -> list[Method]:
    """Each training with the arguments that the paper leaves open, one or two changed at a time."""
    return [
        initialized("initialized"),
        *(frozen(f"frozen low={low}", low) for low in (0, 1, 2, 4)),
        *(hybrid(f"hybrid 0 to {high}", low=0, high=high) for high in (1, 2, 4, 9)),
        hybrid("hybrid 1 to 4", low=1, high=4),
        hybrid("hybrid 0 to 2, threshold .05", low=0, high=2, threshold=0.05),
        hybrid("hybrid 0 to 2, threshold -.05", low=0, high=2, threshold=-0.05),
        hybrid("hybrid 0 to 2, start", low=0, high=2, reference="start"),
        hybrid("hybrid 0 to 2, sign", low=0, high=2, metric="sign"),
        hybrid("hybrid 0 to 9, graded", low=0, high=9, schedule="graded"),
        hybrid("hybrid by module", low=0, threshold=-0.1, granularity="module"),
    ]


def chosen() -> list[Method]:
    adaptive = hybrid("hybrid", low=0, high=2, reference="start")
    return [initialized("initialized"), frozen("frozen", 0), adaptive]


def run(
    methods: Sequence[Method],
    stream: str,
    rate: float,
    seeds: int | list[int],
    place: tuple[Path, Path],
    jobs: int,
) -> None:
    data_root, out = place
    is_mnist = stream == "permuted-mnist"
    compare(
        methods,
        stream=NamedStream(stream, {**STREAMS[stream], "data_root": str(data_root)}),
        model=SlimResNet18Factory(8, heads="single" if is_mnist else "multi"),
        training=Training(
            learning_rate=rate, batch_size=10, epochs=1 if is_mnist else 5, eval_batch_size=250
        ),
        seeds=seeds,
        out=out,
        jobs=jobs,
    )


@app.command()
def rates(data_root: DataRoot, out: Out, jobs: Jobs = 2) -> None:
    """Initialized at several learning rates, on Split CIFAR-100."""
    for rate in RATES:
        methods = [initialized(f"initialized at {rate:g}")]
        run(methods, "split-cifar100", rate, CHOOSING, (data_root, out), jobs)
    write_report(load_results([out]), out / "report", tensorboard=False)


@app.command()
def choose(data_root: DataRoot, out: Out, jobs: Jobs = 2, only: Only = None) -> None:
    """Frozen and hybrid with many arguments, on Split CIFAR-100."""
    run(_matching(candidates(), only), "split-cifar100", RATE, CHOOSING, (data_root, out), jobs)


@app.command()
def stream(name: str, data_root: DataRoot, out: Out, seeds: int = 3, jobs: Jobs = 2) -> None:
    """Initialized, frozen and hybrid, as chosen."""
    if name not in STREAMS:
        raise typer.BadParameter(f"name must be one of {', '.join(STREAMS)}")
    run(chosen(), name, RATE, seeds, (data_root, out), jobs)


@dataclass(frozen=True)
class Setting:
    """A stream at a size, and where its data and results are."""

    stream: str
    tasks: int
    images: int
    epochs: int | None
    data_root: Path
    out: Path
    jobs: int

    def __post_init__(self) -> None:
        known = (*STREAMS, *ALTERNATING)
        if self.stream not in known:
            raise typer.BadParameter(f"stream must be one of {', '.join(known)}")

    def train(self, methods: Sequence[Method], rate: float, seeds: Sequence[int]) -> None:
        """Train the methods, those that are not finished."""
        is_mnist = self.stream.endswith("mnist")
        compare(
            methods,
            stream=self._stream(),
            model=SlimResNet18Factory(8, heads="single" if is_mnist else "multi"),
            training=Training(
                learning_rate=rate,
                batch_size=10,
                epochs=self.epochs or (1 if is_mnist else 5),
                eval_batch_size=250,
            ),
            seeds=list(seeds),
            out=self.out / self.stream,
            jobs=self.jobs,
        )

    def _stream(self) -> NamedStream | AlternatingStream:
        sizes = self.tasks, self.images, max(1, self.images // 2)
        if self.stream in ALTERNATING:
            return AlternatingStream(ALTERNATING[self.stream], *sizes, str(self.data_root))
        names = ("n_experiences", "train_per_experience", "test_per_experience")
        given = {**STREAMS[self.stream], **dict(zip(names, sizes, strict=True))}
        return NamedStream(self.stream, {**given, "data_root": str(self.data_root)})


def decay(name: str, p: float, **settings: Any) -> Method:
    return METHODS["decay"].variant(name, magnitude_decay=p, **settings)


def tuned() -> dict[str, Method]:
    """The trainings of which each has a learning rate of its own."""
    return {
        "initialized": METHODS["initialized"],
        "frozen": frozen("frozen", 1),
        "decay": decay("decay", 0.5),
    }


def compared() -> dict[str, list[Method]]:
    """The methods by the training whose rate is theirs; "control" is that of the same distance."""
    ridge = {"probe_head": "ridge", "threshold": THRESHOLD, "low": 1}
    return {
        "initialized": [
            METHODS["initialized"],
            hybrid("hybrid own", **{**ridge, "probe_head": "own"}),
            hybrid("hybrid ridge", **ridge),
        ],
        "frozen": [frozen(f"frozen {low}", low) for low in (0, 1, 2)],
        "decay": [
            decay("decay .5", 0.5),
            decay("decay 1", 1.0),
            hybrid("decay .5, hybrid ridge", **ridge, magnitude_decay=0.5),
            decay("decay .5, heads too", 0.5, heads=()),
        ],
        "control": [METHODS["initialized"].variant("initialized, as far as decay .5")],
    }


def rates_of(results: Sequence[RunResult]) -> dict[str, float]:
    """Return the best rate of each training, and the control's."""
    scores: dict[str, dict[float, tuple[float, float]]] = {}
    for kind, at in dict.fromkeys(tuple(run.method.split(" at ")) for run in results):
        runs = [run for run in results if run.method == f"{kind} at {at}"]
        acc = fmean(run.scores["acc"] for run in runs)
        moved = fmean(run.metrics.get("Distance_Absolute", math.nan) for run in runs)
        scores.setdefault(kind, {})[float(at)] = (acc, moved)
    # What diverged has no score, and is no training's best; of equals the smallest rate is.
    found = {
        kind: max(sorted(own), key=lambda rate: np.nan_to_num(own[rate][0], nan=-1.0))
        for kind, own in scores.items()
    }
    if {"initialized", "decay"} <= found.keys():
        wanted = scores["decay"][found["decay"]][1]
        found["control"] = _rate_of_distance(scores["initialized"], wanted)
    return found


def _rate_of_distance(scores: dict[float, tuple[float, float]], distance: float) -> float:
    """Return the rate at which the weights move so far: a power of the rate, by least squares."""
    finite = {rate: moved for rate, (acc, moved) in scores.items() if math.isfinite(acc + moved)}
    if len(finite) < 2:
        raise typer.BadParameter("the control needs initialized at two rates at least: run tune")
    slope, start = np.polyfit(np.log([*finite]), np.log([*finite.values()]), 1)
    return float(f"{math.exp((math.log(distance) - start) / slope):.3g}")


@app.command()
def tune(
    stream: str,
    data_root: DataRoot,
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, max=len(TUNING_SEEDS))] = len(TUNING_SEEDS),
    tasks: Tasks = 10,
    images: Images = 1000,
    epochs: Epochs = None,
    only: Only = None,
    jobs: Jobs = 1,
) -> None:
    """Initialized, frozen and decay at several rates; say which is best for each."""
    setting = Setting(stream, tasks, images, epochs, data_root, out, jobs)
    for rate in TUNING_RATES:
        named = [method.variant(f"{kind} at {rate:g}") for kind, method in tuned().items()]
        if chosen := _matching(named, only):
            setting.train(chosen, rate, TUNING_SEEDS[:seeds])
    for kind, rate in rates_of(load_results([out / stream])).items():
        print(f"{stream}: {kind} at {rate:g}")


@app.command()
def magnitudes(
    stream: str,
    tuning: Annotated[Path, typer.Option(help="Results folder of `tune`.")],
    data_root: DataRoot,
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, max=len(FRESH))] = len(FRESH),
    tasks: Tasks = 10,
    images: Images = 1000,
    epochs: Epochs = None,
    only: Only = None,
    jobs: Jobs = 1,
) -> None:
    """All methods at the rates that `tune` has chosen, and the controls, with fresh seeds."""
    setting = Setting(stream, tasks, images, epochs, data_root, out, jobs)
    rates = rates_of(load_results([tuning / stream]))
    for kind, methods in compared().items():
        if chosen := _matching(methods, only):
            setting.train(chosen, rates[kind], FRESH[:seeds])


def _matching(methods: Sequence[Method], patterns: list[str] | None) -> list[Method]:
    return [m for m in methods if not patterns or any(fnmatchcase(m.name, p) for p in patterns)]


if __name__ == "__main__":
    app()
