"""The update-magnitude paper's streams of images, at a size that two cores bear.

    python benchmarks/papers/hybrid.py rates --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py choose --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py stream split-cifar100 --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py stream permuted-mnist --data-root DIR --out DIR
    python benchmarks/papers/hybrid.py stream correlated-cifar100 --data-root DIR --out DIR

Initialized, frozen and hybrid (adaptive) training of arXiv 2602.20796: 10 tasks, a network of 9
blocks of convolutions, of 8 to 64 channels here, batches of 10, SGD. CIFAR-100: 2,000 training and
500 test images a task, 5 epochs, a head a task; correlated: 18 classes a task, 9 of them those of
the task before. MNIST: as many, one epoch, one head.

The paper leaves the learning rate and most arguments of the hybrid open. `rates` trains initialized
at several rates and `choose` frozen and hybrid with many arguments, both on Split CIFAR-100 with a
seed that `stream` does not use; what was chosen there is written below and kept for every stream.
Stop it whenever you like; the same command continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from avalanche_mgem.experiment import (
    METHODS,
    Method,
    NamedStream,
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

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

DataRoot = Annotated[Path, typer.Option(help="Folder of the data sets.")]
Out = Annotated[Path, typer.Option(help="Results folder.")]
Jobs = Annotated[int, typer.Option(help="Processes at once.")]
Only = Annotated[list[str] | None, typer.Option(help="Methods by pattern; repeatable.")]


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
    methods = candidates()
    if only:
        methods = [m for m in methods if any(fnmatchcase(m.name, each) for each in only)]
    run(methods, "split-cifar100", RATE, CHOOSING, (data_root, out), jobs)


@app.command()
def stream(name: str, data_root: DataRoot, out: Out, seeds: int = 3, jobs: Jobs = 2) -> None:
    """Initialized, frozen and hybrid, as chosen."""
    if name not in STREAMS:
        raise typer.BadParameter(f"name must be one of {', '.join(STREAMS)}")
    run(chosen(), name, RATE, seeds, (data_root, out), jobs)


if __name__ == "__main__":
    app()
