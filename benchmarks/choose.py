"""Choose the weights of the penalties (ewc, si, lwf) for the streams of workbench.py.

    python benchmarks/choose.py permuted-digits --out DIR
    python benchmarks/choose.py split-mnist --data-root DIR --out DIR
    python benchmarks/choose.py split-cifar100 --data-root DIR --out DIR

Every weight of 0.01 to 10,000, in steps of 10, is trained with three seeds that workbench.py
does not use, on nine tenths of each experience's training data. The best has the highest mean ACC
on the tenth that was held out, no diverged run, and of equals the smallest weight. The test data
are scored too, and not looked at. What was chosen stands in workbench.py, and for permuted-digits,
the default comparison's stream, in the registry. Stop it whenever you like; the same command
continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from workbench import MODELS, SIZES, TRAINING

from avalanche_mgem.experiment import METHODS, Method, NamedStream, RunResult, compare

SEEDS = (100, 101, 102)
VALIDATION = 0.1
WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
SETTINGS = {"ewc": "ewc_lambda", "si": "si_lambda", "lwf": "alpha"}


def main(
    stream: str,
    out: Annotated[Path, typer.Option(help="Results folder.")],
    data_root: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    jobs: Annotated[int, typer.Option(help="Processes at once.")] = 2,
) -> None:
    if stream not in SIZES:
        raise typer.BadParameter(f"stream must be one of {', '.join(SIZES)}")
    place = {} if stream == "permuted-digits" else {"data_root": str(data_root)}
    results = compare(
        [METHODS["naive"], *(method for name in SETTINGS for method in candidates(name))],
        stream=NamedStream(stream, {**SIZES[stream], **place}),
        model=MODELS[stream],
        training=replace(TRAINING[stream], validation=VALIDATION),
        seeds=SEEDS,
        out=out,
        jobs=jobs,
    )
    for name in SETTINGS:
        print(f"{name}: {best(candidates(name), results)}")


def candidates(name: str) -> list[Method]:
    """Return the method with every weight of its penalty."""
    setting = SETTINGS[name]
    return [
        METHODS[name].variant(f"{name} {setting}={weight:g}", **{setting: weight})
        for weight in WEIGHTS
    ]


def best(methods: Sequence[Method], results: Sequence[RunResult]) -> str:
    """Return the name of the method with the highest mean ACC on validation data."""
    means = {}
    for method in methods:
        runs = [run for run in results if run.method == method.name]
        if all(run.diverged is None for run in runs):
            means[method.name] = mean(run.validation_scores["validation_acc"] for run in runs)
    if not means:
        return "every weight diverged"
    name = max(means, key=lambda each: means[each])  # the first of equals
    return f"{name}, validation ACC {means[name]:.3f}"


if __name__ == "__main__":
    typer.run(main)
