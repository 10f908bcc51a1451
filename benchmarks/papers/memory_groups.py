"""How many groups a memory can bear: d-mGEM(k), and whether the generalisation gap says so before.

    python benchmarks/papers/memory_groups.py permuted-digits --out DIR
    python benchmarks/papers/memory_groups.py permuted-mnist --data-root DIR --out DIR

d-mGEM(k) for k = 1 (GEM), 2, 4, 8, 16, 32 with 16, 64 and 256 memories a task, memory strength
"auto"; every tenth iteration measures the gap cos(z, gradient on the memory) - cos(z, gradient on
as many held-out samples of the same past task). Prints ACC, BWT and the gap of each, with 95%
intervals over the seeds, and writes them to groups.md. Stop it whenever you like; the same command
continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from strength import FRESH, GEM_TRAINING

from avalanche_mgem.experiment import METHODS, NamedStream, RunResult, Training, compare
from avalanche_mgem.results.statistics import mean_interval

GROUPS = (1, 2, 4, 8, 16, 32)
MEMORIES = (16, 64, 256)
EVERY = 10  # iterations
SIZES: dict[str, dict[str, Any]] = {
    "permuted-digits": {"n_experiences": 10, "train_per_experience": 750},
    "permuted-mnist": {
        "n_experiences": 10,
        "train_per_experience": 1000,
        "test_per_experience": 1000,
    },
}


def main(
    stream: Annotated[str, typer.Argument(help=", ".join(SIZES))],
    out: Annotated[Path, typer.Option(help="Results folder; a folder in it for each memory.")],
    data_root: Annotated[Path, typer.Option(help="Folder of MNIST.")] = Path("data"),
    seeds: Annotated[int, typer.Option(min=1, max=5, help="How many.")] = 5,
    jobs: int = 1,
) -> None:
    if stream not in SIZES:
        raise typer.BadParameter(f"stream must be one of {', '.join(SIZES)}, got {stream!r}")
    place = {} if stream == "permuted-digits" else {"data_root": str(data_root)}
    lines = [
        "| memories a task | groups | ACC | BWT | generalisation gap |",
        "| --: | --: | --: | --: | --: |",
    ]
    for memory in MEMORIES:
        chosen = [
            METHODS["mgem-d-auto"].variant(
                f"d({groups})", memory_groups=groups, generalization_every=EVERY
            )
            for groups in GROUPS
            if groups <= memory
        ]
        results = compare(
            chosen,
            stream=NamedStream(stream, {**SIZES[stream], **place}),
            training=_training(memory),
            seeds=FRESH[:seeds],
            out=out / f"memory{memory}",
            jobs=jobs,
        )
        lines += _rows(memory, results)
    text = "\n".join(lines) + "\n"
    (out / "groups.md").write_text(text, encoding="utf-8")
    print(text, end="")


def _training(memory: int) -> Training:
    return Training(
        learning_rate=GEM_TRAINING.learning_rate, batch_size=GEM_TRAINING.batch_size, memory=memory
    )


def _rows(memory: int, results: Sequence[RunResult]) -> Iterator[str]:
    by_method: dict[str, list[RunResult]] = {}
    for run in results:
        by_method.setdefault(run.method, []).append(run)
    for method, runs in by_method.items():
        columns = (
            [run.scores["acc"] for run in runs],
            [run.scores["bwt"] for run in runs],
            [run.restriction["GeneralizationGap"] for run in runs],
        )
        shown = ("{:.3f} ± {:.3f}".format(*mean_interval(values)) for values in columns)
        yield f"| {memory} | {method[2:-1]} | {' | '.join(shown)} |"


if __name__ == "__main__":
    typer.run(main)
