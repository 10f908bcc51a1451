"""How the cost of an iteration grows with past tasks, and with parameters.

    OMP_NUM_THREADS=1 python benchmarks/cost/growth.py --out DIR
    OMP_NUM_THREADS=1 python benchmarks/cost/growth.py --tiny

Milliseconds of a whole training iteration, and the most memory beyond what is resident before the
training, for GEMPlugin and for mGEM: exact, with its memory's passes in bfloat16, with a part of
each memory drawn for an iteration, and with 8 groups a task. First against 1, 5, 20, 50 and 100
past tasks (MLP 784-100-100-10), then against 0.1, 1 and 10 million parameters (20 past tasks). All
methods take their turns at each point. --out DIR writes growth.csv, growth.md with slopes fitted by
least squares, and growth.png. All of it takes about 5 minutes on one core.
"""

from __future__ import annotations

import csv
import ctypes
import gc
import io
import os
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from cost_cases import Case
from gpu_clock import StepClock, peak_mebibytes, start_peak
from growth_figure import draw, markdown
from memory import peak_bytes, reset_peak
from setting import (
    BATCH_SIZE,
    experience_of,
    make_baseline,
    make_ours,
    make_strategy,
    start_model,
)
from whole_train import copied

from avalanche_mgem.files import write_atomically

# The name of a method -> MGEMPlugin's arguments, by how many patterns a task has; None: GEMPlugin.
METHODS: dict[str, Any] = {
    "GEMPlugin": None,
    "mGEM": {},
    "mGEM bf16": {"memory_precision": "bf16"},
    "mGEM memory_batch_size": {"memory_batch_size": 10},
    "d-mGEM(8)": {"memory_groups": 8},
}
TASKS, MODELS = (1, 5, 20, 50, 100), ("mlp", "million", "ten-million")
_TASKS_OF_MODELS = 20
_WARM_UP = 1
_MOST_ROW_BYTES = 4 << 30  # a method whose rows take more is left out


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    patterns: int = 25
    timed: int = 4
    turns: int = 3

    def of(self, model: str) -> Effort:
        """Return that for a model: the largest takes a second or more an iteration."""
        return replace(self, timed=2, turns=1) if model == MODELS[-1] else self


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of growth.csv and the others.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Two points, to show that it runs.")] = False,
    patterns: Annotated[int, typer.Option(min=8, help="Stored of each past task.")] = 25,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise typer.BadParameter("set OMP_NUM_THREADS=1 before Python starts: the host has one")
    torch.set_num_threads(1)
    effort = Effort(patterns, timed=1, turns=1) if tiny else Effort(patterns)
    points = [("mlp", 1), ("mlp", 2)] if tiny else all_points()
    rows: list[dict[str, Any]] = []
    for model, tasks in points:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that bfloat16 is slow on some is what is shown
            rows += measure(model, tasks, effort.of(model), torch.device(device))
        for row in (row for row in rows if (row["model"], row["tasks"]) == (model, tasks)):
            print(
                "{model} T={tasks} {method}: {ms:.3g} ms, {mib:.3g} MiB".format(**row), flush=True
            )
        if out is not None:
            _write(rows, out)
    print(markdown(rows))


def _told(row: dict[str, Any]) -> str:
    where = f"{row['model']} T={row['tasks']} {row['method']}"
    return f"{where}: {row['ms']:.3g} ms, {row['mib']:.3g} MiB"


def all_points() -> list[tuple[str, int]]:
    """Return the models and numbers of past tasks, each pair once."""
    by_tasks = [("mlp", tasks) for tasks in TASKS]
    return [*by_tasks, *((m, _TASKS_OF_MODELS) for m in MODELS if m != "mlp")]


def measure(model: str, tasks: int, effort: Effort, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each method: the medians over its turns."""
    plugins = dict(_plugins(model, tasks, effort, device))
    seconds: dict[str, list[float]] = {name: [] for name in plugins}
    peaks: dict[str, list[float]] = {name: [] for name in plugins}
    for turn in range(effort.turns):
        for name, (case, plugin) in plugins.items():
            taken, peak = _turn(case, plugin, effort, device, turn)
            seconds[name].append(taken)
            peaks[name].append(peak)
    return [
        {
            "model": model,
            "parameters": _n_parameters(case),
            "tasks": tasks,
            "patterns": effort.patterns,
            "method": name,
            "ms": statistics.median(seconds[name]) * 1e3,
            "mib": statistics.median(peaks[name]),
            "device": str(device),
        }
        for name, (case, _) in plugins.items()
    ]


def _plugins(
    model: str, tasks: int, effort: Effort, device: torch.device
) -> Iterator[tuple[str, tuple[Case, Any]]]:
    for name, arguments in METHODS.items():
        own = dict(arguments or {})
        groups = own.pop("memory_groups", 1)
        # The stream goes on for longer than is measured, and its last rows need not fit.
        further = (*own.items(), ("max_row_bytes", 1 << 50))
        case = Case("own", model, tasks, effort.patterns, 1, groups, arguments=further)
        if case.rows * _n_parameters(case) * 4 > _MOST_ROW_BYTES:
            continue
        plugin = make_ours(case, device)
        yield name, (case, make_baseline(case, plugin) if arguments is None else plugin)


def _turn(
    case: Case, plugin: Any, effort: Effort, device: torch.device, seed: int
) -> tuple[float, float]:
    """Train on the current task; return the seconds of an iteration, and the MiB it took."""
    clock = StepClock(device, _WARM_UP)
    strategy = make_strategy(case, [clock, copied(plugin)], case.tasks, device=device)
    experience = experience_of(case, (_WARM_UP + effort.timed) * BATCH_SIZE)
    torch.manual_seed(seed)
    before = _start_peak(device)
    strategy.train(experience)
    on_device = peak_mebibytes(device, before)
    return clock.seconds(), (peak_bytes() - before) / 2**20 if on_device is None else on_device


def _start_peak(device: torch.device) -> int:
    """Begin to watch the peak; return the bytes that are taken now, with nothing left behind."""
    gc.collect()
    if device.type != "cpu":
        return start_peak(device)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    reset_peak()
    return peak_bytes()


def _n_parameters(case: Case) -> int:
    return sum(p.numel() for p in start_model(case).parameters())


def _write(rows: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(
        {k: f"{v:.6g}" if isinstance(v, float | np.floating) else v for k, v in row.items()}
        for row in rows
    )
    write_atomically(folder / "growth.csv", text.getvalue().encode())
    write_atomically(folder / "growth.md", markdown(rows).encode())
    write_atomically(folder / "growth.png", draw(rows))


if __name__ == "__main__":
    typer.run(main)
