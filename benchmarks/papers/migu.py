"""The MIGU paper's orders of text tasks, at a size that two cores bear.

    python benchmarks/papers/migu.py rates --model MODEL --data-root DIR --out DIR
    python benchmarks/papers/migu.py order 1 --model MODEL --data-root DIR --out DIR
    python benchmarks/papers/migu.py order 2 --short --model MODEL --data-root DIR --out DIR
    python benchmarks/papers/migu.py as-far 1 --model MODEL --data-root DIR --out DIR

MIGU is arXiv 2406.17245: AdamW, weight decay .01, batches of 16 here (the paper: 64), one epoch, a
head a task, LoRA of rank 8 at ten times the learning rate of full fine-tuning. `rates` trains plain
fine-tuning at several learning rates, on a seed that the others do not use. `order` trains all
methods, with --short plain fine-tuning, MIGU and random rows. `as-far` finds the learning rates at
which plain fine-tuning moves the weights as far as MIGU does, from the runs that `order` has left
in the same folder, and trains at those. Stop it whenever you like; the same command continues. Each
writes results.csv, accuracy.csv, table.md and plots of all runs of the folder into OUT/report, so
take a folder for each setting: for each model, order, learning rate given and number of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from avalanche_mgem.experiment import (
    METHODS,
    Method,
    RunResult,
    TextModelFactory,
    TextStream,
    Training,
    compare,
    find_method,
    load_results,
    write_report,
)

SHORT = ("naive", "migu", "migu-update", "migu-random", "migu-random-update")
WHOLE = (*SHORT, "migu-gradient", "migu-gradient-update", "replay", "replay+migu")
LORA = ("lora", "lora+migu", "inclora", "inclora+migu", "olora", "olora+migu")
RATES = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
DISTANCE = "Distance_Absolute"

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Model = Annotated[str, typer.Option(help="A name on the hub, or a local folder.")]
DataRoot = Annotated[Path, typer.Option(help="Folder of the tasks.")]
Out = Annotated[Path, typer.Option(help="Results folder.")]
Rate = Annotated[float, typer.Option(help="Learning rate of full fine-tuning.")]
Seeds = Annotated[int, typer.Option(help="How many seeds.")]
Examples = Annotated[int, typer.Option(help="Training examples a task.")]
TestExamples = Annotated[int, typer.Option(help="Test examples a task.")]
Only = Annotated[list[str] | None, typer.Option(help="Methods by name; repeatable.")]


def training(learning_rate: float) -> Training:
    return Training(
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=0.01,
        batch_size=16,
        eval_batch_size=128,
        length_buckets=50,
        memory=25,
    )


def run(
    methods: Sequence[Method],
    learning_rate: float,
    seeds: int | list[int],
    order: str,
    model: str,
    data_root: Path,
    out: Path,
    sizes: tuple[int, int],
) -> list[RunResult]:
    stream = TextStream(
        order,
        tokenizer=model,
        folder=str(data_root),
        max_length=64,
        train_per_experience=sizes[0],
        test_per_experience=sizes[1],
    )
    return compare(
        list(methods),
        stream=stream,
        model=TextModelFactory(model),
        training=training(learning_rate),
        seeds=seeds,
        out=out,
    )


def named(method: Method, name: str) -> Method:
    return replace(method, name=name)


def report(out: Path) -> None:
    write_report(load_results([out]), out / "report", tensorboard=False)
    print(f"All runs: {out / 'report'}")


@app.command()
def rates(
    model: Model,
    data_root: DataRoot,
    out: Out,
    order: str = "1",
    train_examples: Examples = 500,
    test_examples: TestExamples = 250,
) -> None:
    """Plain fine-tuning at several learning rates, on seed 100."""
    for rate in RATES:
        methods = [named(METHODS["naive"], f"naive at {rate:g}")]
        sizes = train_examples, test_examples
        run(methods, rate, [100], order, model, data_root, out, sizes)
    report(out)


@app.command(name="order")
def one_order(
    order: str,
    model: Model,
    data_root: DataRoot,
    out: Out,
    learning_rate: Rate = 1e-4,
    seeds: Seeds = 2,
    train_examples: Examples = 500,
    test_examples: TestExamples = 250,
    short: Annotated[bool, typer.Option("--short", help="Fine-tuning, MIGU, random.")] = False,
    only: Only = None,
) -> None:
    """All methods on one order of tasks."""
    sizes = train_examples, test_examples
    for names, rate in ((SHORT if short else WHOLE, learning_rate), (LORA, 10 * learning_rate)):
        if short and names is LORA:
            continue
        methods = [find_method(name) for name in names if only is None or name in only]
        if methods:
            run(methods, rate, seeds, order, model, data_root, out, sizes)
    report(out)


@app.command(name="as-far")
def as_far(
    order: str,
    model: Model,
    data_root: DataRoot,
    out: Out,
    learning_rate: Rate = 1e-4,
    seeds: Seeds = 2,
    train_examples: Examples = 500,
    test_examples: TestExamples = 250,
    tries: Annotated[int, typer.Option(help="Corrections of a rate.")] = 2,
) -> None:
    """Plain fine-tuning at the rates at which it moves the weights as far as MIGU."""
    sizes = train_examples, test_examples
    base = distance(run_again("naive", learning_rate, seeds, order, model, data_root, out, sizes))
    for other in ("migu", "migu-update"):
        runs = run_again(other, learning_rate, seeds, order, model, data_root, out, sizes)
        wanted = distance(runs)
        rate, moved = learning_rate, base
        for _ in range(tries):
            rate = float(f"{rate * wanted / moved:.2g}")
            name = f"naive as far as {other} ({rate:g})"
            methods = [named(METHODS["naive"], name)]
            moved = distance(run(methods, rate, seeds, order, model, data_root, out, sizes))
            print(f"{name}: {moved:.3f}, wanted {wanted:.3f}")
    report(out)


def run_again(name: str, learning_rate: float, *rest: Any) -> list[RunResult]:
    """The runs of a method, from the folder where they are there."""
    return run([find_method(name)], learning_rate, *rest)


def distance(results: Sequence[RunResult]) -> float:
    """How far an experience moved the weights, the mean over experiences and runs."""
    return fmean(result.metrics[DISTANCE] for result in results)


if __name__ == "__main__":
    app()
