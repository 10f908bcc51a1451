"""mGEM's memory strength: fixed at several sizes, and "auto", against GEM's best.

    python benchmarks/papers/strength.py choose permuted-mnist --data-root DIR --out DIR
    python benchmarks/papers/strength.py compare permuted-mnist --data-root DIR --out DIR
    python benchmarks/papers/strength.py compare permuted-mnist --frontier --data-root DIR --out DIR

Streams: permuted-mnist and rotated-mnist at GEM's settings (20 tasks of 1,000 training examples,
one epoch, batches of 10, SGD at 0.1, 256 memories a task, MLP 784-100-100-10; arXiv 1706.08840);
split-mnist and split-cifar100 (a CNN with batch normalisation) at the sizes of workbench.py.

`choose` trains GEM at every fixed strength with seeds that nothing else uses, and says which has
the highest mean ACC. `compare` trains GEM at all strengths, and each mGEM at 0, 0.5 and "auto",
with fresh seeds, and two with memory_precision="bf16"; with --frontier, GEM, p-mGEM and d-mGEM at
more strengths, for the curves of LA against BWT. Stop it whenever you like; the same command
continues. strength_table.py and strength_figure.py show what the folder holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from avalanche_mgem.experiment import (
    METHODS,
    CNNFactory,
    Method,
    MLPFactory,
    NamedStream,
    RunResult,
    Training,
    compare,
)

GAMMAS = (0.0, 0.1, 0.25, 0.5, 1.0)
FRONTIER = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
CHOOSING = (100, 101, 102)
FRESH = (20, 21, 22, 23, 24)
MNIST: dict[str, Any] = {
    "n_experiences": 20,
    "train_per_experience": 1000,
    "test_per_experience": 1000,
}
SIZES: dict[str, dict[str, Any]] = {
    "permuted-mnist": MNIST,
    "rotated-mnist": MNIST,
    "split-mnist": {**MNIST, "n_experiences": 5},
    "split-cifar100": {
        "n_experiences": 10,
        "train_per_experience": 500,
        "test_per_experience": 500,
        "task_labels": True,
    },
}
GEM_TRAINING = Training(learning_rate=0.1, batch_size=10, epochs=1, memory=256)
TRAINING = {
    "permuted-mnist": GEM_TRAINING,
    "rotated-mnist": GEM_TRAINING,
    "split-mnist": Training(learning_rate=0.05),
    "split-cifar100": Training(learning_rate=0.05, epochs=2, memory=32),
}
MODELS = {"split-cifar100": CNNFactory((16, 32, 64), heads="multi")}
# As MGEMPlugin has them, GEM too: with one module and one group it equals Avalanche's GEMPlugin.
KINDS: dict[str, dict[str, Any]] = {
    "gem": {},
    "mgem-p(8)": {"parameter_groups": 8},
    "mgem-d(8)": {"memory_groups": 8},
    "mgem-pd(8,4)": {"parameter_groups": 8, "memory_groups": 4},
}
# The memory's gradients in bfloat16: what rounding them costs.
HALF: dict[str, dict[str, Any]] = {
    "gem bf16": {"memory_precision": "bf16"},
    "mgem-d(8) bf16": {"memory_groups": 8, "memory_precision": "bf16"},
}

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Stream = Annotated[str, typer.Argument(help=", ".join(SIZES))]
DataRoot = Annotated[Path, typer.Option(help="Folder of the data sets.")]
Out = Annotated[Path, typer.Option(help="Results folder.")]
Jobs = Annotated[int, typer.Option(help="Processes at once.")]
Seeds = Annotated[int, typer.Option(min=1, max=len(FRESH), help="How many fresh seeds.")]
Frontier = Annotated[bool, typer.Option("--frontier", help="More strengths, fewer methods.")]
Only = Annotated[
    list[str] | None, typer.Option(help="Methods by pattern, with * and ?; repeatable.")
]


def method(kind: str, strength: float | str) -> Method:
    """Return a kind of mGEM at one memory strength."""
    at = strength if isinstance(strength, str) else f"gamma={strength:g}"
    settings = {"parameter_groups": 1, "memory_groups": 1, **(KINDS | HALF)[kind]}
    return METHODS["mgem-p"].variant(f"{kind} {at}", **settings, memory_strength=strength)


@app.command()
def choose(stream: Stream, data_root: DataRoot, out: Out, jobs: Jobs = 1) -> None:
    """Say which fixed strength is GEM's best."""
    results = _run(
        [method("gem", gamma) for gamma in GAMMAS], CHOOSING, stream, data_root, out, jobs
    )
    print(f"{stream}: {best(results)}")


@app.command(name="compare")
def compare_strengths(
    stream: Stream,
    data_root: DataRoot,
    out: Out,
    jobs: Jobs = 1,
    only: Only = None,
    seeds: Seeds = 5,
    frontier: Frontier = False,
) -> None:
    """Compare the strengths, with fresh seeds."""
    if frontier:
        kinds = ("gem", "mgem-p(8)", "mgem-d(8)")
        chosen = [method(kind, strength) for strength in (*FRONTIER, "auto") for kind in kinds]
    else:
        strengths = dict.fromkeys(KINDS, (0.0, 0.5, "auto")) | {"gem": (*GAMMAS, "auto")}
        chosen = [method(kind, strength) for kind in KINDS for strength in strengths[kind]]
        chosen += [method(kind, 0.5) for kind in HALF]
    _run(_only(chosen, only), FRESH[:seeds], stream, data_root, out, jobs)


def best(results: Sequence[RunResult]) -> str:
    """Return the method with the highest mean ACC."""
    scores: dict[str, list[float]] = {}
    for run in results:
        scores.setdefault(run.method, []).append(run.scores["acc"])
    return max(scores, key=lambda name: mean(scores[name]))


def _only(methods: list[Method], patterns: list[str] | None) -> list[Method]:
    if not patterns:
        return methods
    return [m for m in methods if any(fnmatchcase(m.name, pattern) for pattern in patterns)]


def _run(
    methods: list[Method],
    seeds: Sequence[int],
    stream: str,
    data_root: Path,
    out: Path,
    jobs: int,
) -> list[RunResult]:
    if stream not in SIZES:
        raise typer.BadParameter(f"stream must be one of {', '.join(SIZES)}, got {stream!r}")
    return compare(
        methods,
        stream=NamedStream(stream, {**SIZES[stream], "data_root": str(data_root)}),
        model=MODELS.get(stream, MLPFactory()),
        training=TRAINING[stream],
        seeds=seeds,
        out=out,
        jobs=jobs,
    )


if __name__ == "__main__":
    app()
