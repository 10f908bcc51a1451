"""What the two approximations of mGEM cost in accuracy: fewer samples a step, rows used again.

    python benchmarks/approximations.py --data-root DIR --out DIR

20 MNIST permutations at GEM's settings (1,000 training examples a task, one epoch, batches of 10,
SGD at 0.1, 256 memories a task, memory strength 0.5, MLP 784-100-100-10), 1,000 test examples a
task, 3 seeds. `exact` is GEM: one module and one group. The others draw 25 samples of each task at
each step (memory_batch_size), compute the rows at every second or fifth step only (refresh_every),
or both. What they save is in benchmarks/cost. Stop it whenever you like; the same command
continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avalanche_mgem.experiment import METHODS, Method, NamedStream, Training, compare


def methods() -> list[Method]:
    """GEM's one group of 256 memories a task; all of it at each step, or less."""
    exact = METHODS["mgem-d"].variant("exact", memory_groups=1, memory_strength=0.5)
    fewer, less_often = {"memory_batch_size": 25}, {"refresh_every": 2}
    return [
        exact,
        exact.variant("memory_batch_size=25", **fewer),
        exact.variant("refresh_every=2", **less_often),
        exact.variant("refresh_every=5", refresh_every=5),
        exact.variant("memory_batch_size=25, refresh_every=2", **fewer, **less_often),
    ]


def main(
    data_root: Annotated[Path, typer.Option(help="Folder with MNIST/raw; downloaded if missing.")],
    out: Annotated[Path, typer.Option(help="Results folder.")],
    seeds: int = 3,
    jobs: int = 1,
) -> None:
    arguments = {
        "n_experiences": 20,
        "train_per_experience": 1000,
        "test_per_experience": 1000,
        "data_root": str(data_root),
    }
    compare(
        methods(),
        stream=NamedStream("permuted-mnist", arguments),
        seeds=seeds,
        training=Training(learning_rate=0.1, batch_size=10, epochs=1, memory=256),
        out=out,
        jobs=jobs,
    )


if __name__ == "__main__":
    typer.run(main)
