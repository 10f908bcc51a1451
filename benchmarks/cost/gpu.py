"""What training steps cost on a GPU, against Avalanche's GEMPlugin and against plain steps.

    OMP_NUM_THREADS=1 python benchmarks/cost/gpu.py --out DIR
    OMP_NUM_THREADS=1 python benchmarks/cost/gpu.py --only "step mlp T20*"
    OMP_NUM_THREADS=1 python benchmarks/cost/gpu.py --device cpu

First the tests that need CUDA. Then, for each case, the median of the paired ratios (baseline's
time of a step / ours) with quartiles, by CUDA's events, after a warm-up, both sides in turns; the
most memory taken on the device; and, by torch's profiler, kernel launches, copies and
synchronisations a step, with the operators and the lines of Python that make the host wait.
Everything is float32 with TF32 switched off, unless a case says bf16. What is solved on the host
has one thread.

--out DIR keeps every finished case in gpu.csv at once, the log of the tests in tests.log and their
results in junit.xml. What matters most comes first, and no case begins after --minutes: on an H100
the tests take half a minute and a case 5 to 60 seconds. On a CPU a few tiny cases show that it
runs; their times say nothing.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from gpu_cases import Job, all_jobs, tiny_jobs
from gpu_measure import FULL, TINY
from gpu_table import Table, line, surroundings

_ROOT = Path(__file__).resolve().parents[2]
_TEST_SECONDS = 200
_TEST_LINES = 40  # of a log that tells of failures


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of gpu.csv.")] = None,
    only: Annotated[str, typer.Option(help="Cases whose name fits this pattern.")] = "*",
    device: Annotated[str, typer.Option(help="cuda or cpu; unless given, cuda if any.")] = "",
    tests: Annotated[bool, typer.Option(help="Run the tests that need CUDA first.")] = True,
    minutes: Annotated[float, typer.Option(help="No case begins after so long.")] = 7.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace gpu.csv.")] = False,
) -> None:
    end = time.perf_counter() + minutes * 60
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise typer.BadParameter("set OMP_NUM_THREADS=1 before Python starts: the host has one")
    torch.set_num_threads(1)
    where = _device(device)
    on_cuda = where.type == "cuda"
    jobs = [j for j in (all_jobs() if on_cuda else tiny_jobs()) if fnmatch.fnmatch(j.name, only)]
    if not jobs:
        raise typer.BadParameter(f"no case fits --only {only!r}")
    about = surroundings(where)
    try:
        table = Table(None if out is None else out / "gpu.csv", about, overwrite)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _say(f"{about['device']}, torch {about['torch']}, TF32 off; {len(jobs)} cases")
    if tests and not on_cuda:
        _say("the tests that need CUDA are left out: this is a CPU")
    passed = _run_tests(out) if tests and on_cuda else True
    _without_tf32()
    _measure_all(jobs, where, table, end)
    failed = [row["case"] for row in table.rows if row["error"]]
    if failed:
        _say(f"failed: {', '.join(failed)}")
    if failed or not passed:
        raise typer.Exit(1)


def _device(name: str) -> torch.device:
    if name not in ("", "cpu", "cuda"):
        raise typer.BadParameter(f"--device must be cuda or cpu, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: torch finds no CUDA device here")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _without_tf32() -> None:
    """Let float32 products keep float32's digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has new names for these; the old ones work in all
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def _run_tests(out: Path | None) -> bool:
    """Run the tests that need CUDA; return whether they passed."""
    marked = [
        str(path)
        for path in sorted((_ROOT / "tests").rglob("test_*.py"))
        if "mark.cuda" in path.read_text(encoding="utf-8")
    ]
    # Warnings are no errors here: this machine's libraries may warn of what is not ours.
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-n", "4", "-W", "default", *marked]
    if out is not None:
        command.append(f"--junitxml={out / 'junit.xml'}")
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    code: int | str
    try:
        done = subprocess.run(command, check=False, cwd=_ROOT, timeout=_TEST_SECONDS, **together)
        log, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        log, code = error.stdout or b"", f"none: longer than {_TEST_SECONDS} s"
    if out is not None:
        (out / "tests.log").write_bytes(log)
    lines = log.decode(errors="replace").splitlines()
    _say("\n".join(lines[-1:] if code == 0 else lines[-_TEST_LINES:]))
    _say(f"the tests that need CUDA: exit code {code}")
    return code == 0


def _measure_all(jobs: list[Job], device: torch.device, table: Table, end: float) -> None:
    """Measure one job after the other until the time is up."""
    for number, job in enumerate(jobs, 1):
        late = time.perf_counter() > end
        reason = "the time is up" if late else job.reason
        if reason:
            _say(f"[{number}/{len(jobs)}] left out: {job.name}: {reason}")
            continue
        row = _measure(job, device)
        table.add(row)
        _say(f"[{number}/{len(jobs)}] {row['seconds']:.0f} s: {line(row)}")


def _measure(job: Job, device: torch.device) -> dict[str, Any]:
    """Return the row of one job; an error is one of its columns, the others go on."""
    start = time.perf_counter()
    row: dict[str, Any] = {"case": job.name, "precision": job.precision, **job.settings}
    row["error"] = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row |= job.measure(device, FULL if device.type == "cuda" else TINY)
        if job.target is not None:
            row["at_least"] = job.target.at_least
            row["verdict"] = job.target.verdict(row["value"])
    except Exception as error:
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row | {"seconds": time.perf_counter() - start}


def _say(text: str) -> None:
    """Show it at once, also where the output goes into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    typer.run(main)
