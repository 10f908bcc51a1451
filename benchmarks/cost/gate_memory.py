"""Extra peak memory of training with the gate: a fresh process with it, and one without.

    python benchmarks/cost/gate_memory.py MODEL [FREEZE MASK_FRACTION]

is one such process, and prints the bytes that it had at most; gate.py starts them.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from gate_setting import Training, Variant
from memory import _ALLOCATOR, peak_bytes, reset_peak

_ITERATIONS = 3
_FLOAT = 4


def extra_memory(model: str, variant: Variant) -> tuple[float, float]:
    """Return the extra peak in MiB, and in units of the bytes of all parameters."""
    extra = _peak(model, variant)[0] - _peak(model, Variant())[0]
    return extra / 2**20, extra / (_peak(model, Variant())[1] * _FLOAT)


@cache
def _peak(model: str, variant: Variant) -> tuple[int, int]:
    command = [sys.executable, str(Path(__file__).resolve()), model]
    command += [variant.freeze, str(variant.mask_fraction)] if variant.freeze else []
    environment = {**os.environ, **_ALLOCATOR}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    peak, parameters = done.stdout.split()
    return int(peak), int(parameters)


def _train(model: str, variant: Variant) -> tuple[int, int]:
    training = Training(model, variant, _ITERATIONS)
    training.seconds()  # the first task, which makes the optimiser's state
    gc.collect()
    reset_peak()
    training.seconds()
    return peak_bytes(), training.parameters


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, *gate = sys.argv[1:]
    print(*_train(model, Variant(gate[0], float(gate[1])) if gate else Variant()))
