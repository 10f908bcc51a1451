"""The mGEM paper's MNIST streams at GEM's settings, on data you have or download.

    python benchmarks/papers/mgem.py permuted-mnist --data-root DIR --out DIR
    python benchmarks/papers/mgem.py rotated-mnist --data-root DIR --out DIR

Settings of GEM's code (METHODS: arXiv 1706.08840, 2410.00868): 1,000 training examples a task, one
epoch, batches of 10, SGD at 0.1, 256 memories a task, MLP 784-100-100-10; here 10 tasks, 3 seeds,
and 2,000 test examples a task, unless told otherwise (GEM has 20 tasks). Stop it whenever you like;
the same command continues. With --undivided it runs one method alone: d-mGEM with gamma on every
row, not shared by a task's groups.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from avalanche_mgem.experiment import METHODS, Method, NamedStream, Training, compare

GAMMAS = (0.0, 0.5)


def methods() -> list[Method]:
    """Baselines, and every way to split the parameters and the memory, at both memory strengths."""
    gem, parameters, memory, both = (METHODS[n] for n in ("gem", "mgem-p", "mgem-d", "mgem-pd"))
    chosen = [METHODS["naive"], METHODS["replay"], METHODS["agem"]]
    for gamma in GAMMAS:
        strength = {"memory_strength": gamma}
        at = f"gamma={gamma:g}"
        chosen.append(gem.variant(f"gem {at}", **strength))
        for groups in (2, 8, "layer"):
            name = f"mgem-p({groups}) {at}"
            chosen.append(parameters.variant(name, parameter_groups=groups, **strength))
        for groups in (2, 8):
            chosen.append(
                memory.variant(f"mgem-d({groups}) {at}", memory_groups=groups, **strength)
            )
        chosen.append(both.variant(f"mgem-pd(8,4) {at}", **strength))
        approximate = {"solver": "approximate", **strength}
        chosen.append(parameters.variant(f"mgem-p(8) approx {at}", **approximate))
        chosen.append(memory.variant(f"mgem-d(8) approx {at}", **approximate))
    return chosen


def undivided() -> list[Method]:
    """d-mGEM with gamma on every row: eight times the push of GEM."""
    strength = {"memory_strength": 0.5, "memory_strength_per": "row"}
    return [METHODS["mgem-d"].variant("mgem-d(8) gamma=0.5 a row", **strength)]


def main(
    stream: str,
    data_root: Annotated[Path, typer.Option(help="Folder with MNIST/raw; downloaded if missing.")],
    out: Annotated[Path, typer.Option(help="Results folder.")],
    seeds: int = 3,
    experiences: int = 10,
    test_examples: Annotated[int, typer.Option(help="Test examples a task.")] = 2000,
    jobs: int = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Methods by pattern, with * and ?; repeatable.")
    ] = None,
    only_undivided: Annotated[
        bool, typer.Option("--undivided", help="Gamma on every row, that method alone.")
    ] = False,
) -> None:
    arguments = {
        "n_experiences": experiences,
        "train_per_experience": 1000,
        "test_per_experience": test_examples,
        "data_root": str(data_root),
    }
    chosen = undivided() if only_undivided else methods()
    if only:
        chosen = [m for m in chosen if any(fnmatchcase(m.name, pattern) for pattern in only)]
    compare(
        chosen,
        stream=NamedStream(stream, arguments),
        seeds=seeds,
        training=Training(learning_rate=0.1, batch_size=10, epochs=1, memory=256),
        out=out,
        jobs=jobs,
    )


if __name__ == "__main__":
    typer.run(main)
