"""Extra peak memory: what a process needs at most while it trains, with and without a plugin.

A fresh process for each of: no plugin, GEMPlugin, MGEMPlugin. All hold the same patterns, the
network and both plugins; one plugin or none is attached. Two iterations warm up, the peak of the
resident memory is set back, and four iterations follow. What is reported is the peak less that of
the process without a plugin, also in units of the bytes of the T memory gradients, T * P * 4.

    python benchmarks/cost/memory.py none|baseline|ours T M PARAMETER_GROUPS MEMORY_GROUPS GAMMA \
        [ARGUMENT=VALUE ...]

is one such process, and prints bytes; cost.py starts them.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from cost_cases import Case
from setting import (
    BATCH_SIZE,
    experience_of,
    make_baseline,
    make_ours,
    make_strategy,
    start_model,
)

_WARM_UP, _ITERATIONS = 2, 4
_FLOAT = 4
_MOST_REPEATS = 2  # they differ by a hundredth of the unit
# Freed blocks go back at once, so that what is resident is what is in use.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


class _Peak(SupervisedPlugin):
    """Sets the peak back when the process is warm, and reads it at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_iterations == _WARM_UP:
            gc.collect()
            reset_peak()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.bytes = peak_bytes()


def reset_peak() -> bool:
    """Set the peak of this process's resident memory to what it is now; False: not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_memory(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Return two rows of one case: ours, and the baseline's, in units of T * P * 4 bytes."""
    parameters = sum(p.numel() for p in start_model(case).parameters())
    unit = case.tasks * parameters * _FLOAT
    # The others know nothing of modules and further arguments, and are measured once for all.
    plain = replace(case, parameter_groups=1, arguments=(), figure="", target=None)
    repeats = min(repeats, _MOST_REPEATS)
    peaks = {
        "none": _peaks("none", plain, repeats),
        "baseline": _peaks("baseline", plain, repeats),
        "ours": _peaks("ours", case, repeats),
    }
    least = statistics.median(peaks["none"])
    extra = {side: [peak - least for peak in peaks[side]] for side in ("ours", "baseline")}
    middle = {side: statistics.median(values) for side, values in extra.items()}
    return [
        {
            "measure": f"{side}: extra peak / (T * P * 4 bytes)",
            "value": middle[side] / unit,
            "quartile_1": min(values) / unit,
            "quartile_3": max(values) / unit,
            "ours": middle["ours"] / 2**20,
            "baseline_value": middle["baseline"] / 2**20,
            "unit": "MiB",
            "pairs": len(values),
        }
        for side, values in extra.items()
    ]


@cache
def _peaks(side: str, case: Case, repeats: int) -> list[int]:
    arguments = [case.tasks, case.patterns, case.parameter_groups, case.memory_groups, case.gamma]
    arguments += [f"{name}={value}" for name, value in case.arguments]
    command = [sys.executable, str(Path(__file__).resolve()), side, *map(str, arguments)]
    settings = {"env": {**os.environ, **_ALLOCATOR}, "capture_output": True, "text": True}
    peaks = []
    for _ in range(repeats):
        done = subprocess.run(command, check=False, **settings)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
        peaks.append(int(done.stdout))
    return peaks


def _train(side: str, case: Case) -> int:
    ours = make_ours(case)
    plugins = {"ours": [ours], "baseline": [make_baseline(case, ours)], "none": []}
    peak = _Peak()
    memories = len(plugins["baseline"][0].memory_x)
    strategy = make_strategy(case, [peak, *plugins[side]], memories)
    torch.manual_seed(0)
    strategy.train(experience_of(case, (_WARM_UP + _ITERATIONS) * BATCH_SIZE))
    return peak.bytes


if __name__ == "__main__":
    torch.set_num_threads(1)
    side, tasks, patterns, parameter_groups, memory_groups, gamma, *further = sys.argv[1:]
    modules = int(parameter_groups) if parameter_groups.isdigit() else parameter_groups
    sizes = (int(tasks), int(patterns), modules, int(memory_groups), float(gamma))
    named = tuple((name, value) for name, _, value in (each.partition("=") for each in further))
    print(_train(side, Case("memory", "wide", *sizes, arguments=named)))
