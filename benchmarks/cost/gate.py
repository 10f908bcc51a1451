"""What MIGU's gate costs: a training step with it against the plain step, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/cost/gate.py --out DIR
    OMP_NUM_THREADS=1 python benchmarks/cost/gate.py --model mlp --rounds 100
    OMP_NUM_THREADS=1 python benchmarks/cost/gate.py --model mlp --profile

A step is forward, backward and AdamW's step under Avalanche's Naive: of a BERT as large as
all-MiniLM-L6-v2 (16 texts of 64 tokens; also with a vocabulary of 1,000, and with LoRA on all
layers), of one as wide as bert-base (3 layers, 8 texts of 128 tokens), of five convolutions (32
images of 32 x 32) and of an MLP (784-1000-1000-10, minibatches of 32). All variants take turns in
one process, and what is compared are seconds of the CPU; the first step of an experience, which
looks for output heads, is left out. Prints the median of the paired ratios gate / plain with
quartiles, of how many layers the gradients of masked rows were left out ("fused"), and the extra
peak memory, of a process of its own, also in units of the bytes of the network's parameters.

--out DIR writes gate.csv, a network's rows as soon as they are measured. All of it takes about 40
minutes. --profile measures and writes nothing of that: it prints how many milliseconds each part of
a step takes, plain and with the gate.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from cost_cases import Target
from gate_memory import extra_memory
from gate_profile import profile
from gate_setting import MODELS, Training, Variant
from record import environment
from rich.console import Console
from rich.table import Table

from avalanche_mgem.files import write_atomically

FRACTIONS = (0.7, 0.4, 0.1)
GATED = [Variant(freeze, T) for freeze in ("gradient", "update") for T in FRACTIONS]
TARGETS = {
    ("encoder", "gradient", 0.7): Target(0.96, below=True),
    ("encoder", "update", 0.7): Target(0.89, below=True),
    ("wide", "gradient", 0.7): Target(0.91, below=True),
    ("wide", "update", 0.7): Target(0.82, below=True),
}
OTHERS = Target(1.02, 1.01, below=True)
ITERATIONS = {"mlp": 5}  # of each variant's turn; of larger networks one
COLUMNS = (
    "model",
    "freeze",
    "mask_fraction",
    "ratio",
    "quartile_1",
    "quartile_3",
    "step_ms",
    "plain_ms",
    "rounds",
    "at_most",
    "verdict",
    "fused",
    "layers",
    "extra_mib",
    "extra_parameters",
)


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of gate.csv.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="mlp, ...; all unless given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="In each, every variant has its turn.")] = 60,
    memory: Annotated[bool, typer.Option(help="Measure the extra peak memory too.")] = True,
    split: Annotated[bool, typer.Option("--profile", help="Print the parts of a step.")] = False,
) -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise typer.BadParameter("set OMP_NUM_THREADS=1 before Python starts: the costs are of one")
    for name in model or ():
        if name not in MODELS:
            raise typer.BadParameter(f"--model {name} is none of {', '.join(MODELS)}")
    torch.set_num_threads(1)
    if split:
        for name in model or MODELS:
            table = profile(name, GATED, rounds, ITERATIONS.get(name, 1))
            Console(width=None if Console().is_terminal else 220).print(table)
        return
    console = Console(width=None if Console().is_terminal else 160)
    for name in model or MODELS:
        measured = list(measure(name, rounds, memory))
        console.print(_table(measured))
        if out is not None:
            _keep(name, measured, out / "gate.csv")


def measure(model: str, rounds: int, memory: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each variant with the gate."""
    seconds, paths = _seconds(model, [Variant(), *GATED], rounds)
    plain = seconds[Variant()]
    for variant in GATED:
        ratios = seconds[variant] / plain
        lower, middle, upper = np.percentile(ratios, [25, 50, 75])
        target = TARGETS.get((model, variant.freeze, variant.mask_fraction), OTHERS)
        extra = extra_memory(model, variant) if memory else ("", "")
        yield {
            "model": model,
            "freeze": variant.freeze,
            "mask_fraction": variant.mask_fraction,
            "ratio": middle,
            "quartile_1": lower,
            "quartile_3": upper,
            "step_ms": np.median(seconds[variant]) * 1e3,
            "plain_ms": np.median(plain) * 1e3,
            "rounds": rounds,
            "at_most": target.at_least,
            "verdict": target.verdict(middle),
            "fused": paths[variant]["fused"],
            "layers": paths[variant].total(),
            "extra_mib": extra[0],
            "extra_parameters": extra[1],
        }


def _seconds(
    model: str, variants: list[Variant], rounds: int
) -> tuple[dict[Variant, np.ndarray], dict[Variant, Counter[str]]]:
    """Return the seconds of each variant's step, a round at a time, and its layers' paths.

    Each variant begins its share of the rounds.
    """
    iterations = ITERATIONS.get(model, 1)
    trainings = {variant: Training(model, variant, iterations) for variant in variants}
    taken: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for training in trainings.values():  # the first task
        training.seconds()
    for number in range(rounds):
        first = number % len(variants)
        for variant in variants[first:] + variants[:first]:
            taken[variant].append(trainings[variant].seconds())
    paths = {variant: training.paths for variant, training in trainings.items()}
    return {variant: np.array(values) for variant, values in taken.items()}, paths


def _table(rows: list[dict[str, Any]]) -> Table:
    shown = Table()
    for heading in (
        *("model", "gate", "ratio (quartiles)", "step", "plain", "at most", ""),
        *("fused", "memory"),
    ):
        shown.add_column(heading)
    for row in rows:
        extra = row["extra_mib"], row["extra_parameters"]
        shown.add_row(
            row["model"],
            Variant(row["freeze"], row["mask_fraction"]).name,
            f"{row['ratio']:.3f} ({row['quartile_1']:.3f}-{row['quartile_3']:.3f})",
            f"{row['step_ms']:.4g} ms",
            f"{row['plain_ms']:.4g} ms",
            str(row["at_most"]),
            row["verdict"],
            f"{row['fused']} of {row['layers']}",
            "" if extra[0] == "" else f"{extra[0]:.0f} MiB, {extra[1]:.2f} of the parameters",
            style="red" if row["verdict"] == "MISSED" else None,
        )
    return shown


def _keep(model: str, measured: list[dict[str, Any]], path: Path) -> None:
    """Put a model's rows in place of those that the file has of it."""
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["model"] != model]
    for row in measured:
        short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        rows.append({**short, **environment()})
    rows.sort(key=lambda row: list(MODELS).index(row["model"]))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *environment()], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


if __name__ == "__main__":
    typer.run(main)
