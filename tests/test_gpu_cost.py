"""The measurement for GPUs runs on a CPU too, keeps what it has, and counts as it should."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "benchmarks" / "cost"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """The command's module; it and what it imports are forgotten again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(sys.modules)
    import gpu

    yield gpu
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def run(gpu):
    app = Typer()
    app.command()(gpu.main)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_tiny_run_writes_a_row_a_case(run, tmp_path):
    done = run("--device", "cpu", "--out", tmp_path, "--only", "[!g]*")
    assert done.exit_code == 0, done.output
    rows = read(tmp_path / "gpu.csv")
    assert {"step", "project", "solver"} == {row["what"] for row in rows}
    for row in rows:
        assert float(row["quartile_1"]) <= float(row["value"]) <= float(row["quartile_3"])
        assert row["error"] == row["launches_ours"] == row["peak_mib_ours"] == ""
        assert row["device"] == "CPU"
        assert row["tf32"] == "off"
        assert row["torch"]
        assert row["case"] in done.output
    steps = [row for row in rows if row["what"] == "step"]
    assert all(float(row["reads_baseline"]) > 0 for row in steps)
    assert all(float(row["reads_ours"]) >= 0 for row in steps)
    assert float(steps[0]["parameter_difference"]) < 1e-5


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_gate_is_measured(gpu, precision):
    (job,) = [
        job
        for job in gpu.tiny_jobs()
        if job.settings["what"] == "gate" and "update" in job.name and job.precision == precision
    ]
    row = job.measure(CPU, replace(gpu.TINY, pairs=1, timed=1))
    assert row["ours"] > 0
    assert row["baseline_value"] > 0


def test_an_error_is_a_row_and_the_others_go_on(run, gpu, tmp_path, monkeypatch):
    def fail(device, effort):
        raise RuntimeError("out of luck\nat length")

    (good,) = [job for job in gpu.tiny_jobs() if job.name.startswith("project")]
    jobs = [replace(good, name="bad", measure=fail), replace(good, name="not", reason="no"), good]
    monkeypatch.setattr(gpu, "tiny_jobs", lambda: jobs)
    done = run("--device", "cpu", "--out", tmp_path)
    assert done.exit_code == 1
    assert [(row["case"], row["error"]) for row in read(tmp_path / "gpu.csv")] == [
        ("bad", "RuntimeError: out of luck"),
        (good.name, ""),
    ]
    assert "left out: not: no" in done.output
    assert run("--device", "cpu", "--out", tmp_path).exit_code == 2  # the file is left alone


def test_no_case_begins_when_the_time_is_up(run):
    done = run("--device", "cpu", "--minutes", 0)
    assert done.exit_code == 0
    assert done.output.count("left out: ") >= 5


def test_jobs_have_names_of_their_own(gpu):
    for jobs in (gpu.all_jobs(), gpu.tiny_jobs()):
        names = [(job.name, job.precision) for job in jobs]
        assert len(set(names)) == len(names)


def test_calls_are_counted_by_the_step_and_by_cause(gpu):
    from gpu_trace import STEP, Span, count, told

    def step(start):
        return [
            Span(STEP, start, start + 100),
            Span("aten::mm", start + 1, start + 5),
            Span("cudaLaunchKernel", start + 2, start + 3),
            Span("aten::item", start + 10, start + 30),
            Span("aten::_local_scalar_dense", start + 11, start + 29),
            Span("cudaMemcpyAsync", start + 12, start + 13),
            Span("cudaStreamSynchronize", start + 14, start + 28),
            Span("aten::nonzero", start + 40, start + 60),
            Span("cuLaunchKernelEx", start + 41, start + 42),
            Span("cudaStreamSynchronize", start + 45, start + 50),
        ]

    between = [Span("cudaDeviceSynchronize", 150, 160), Span("aten::item", 150, 160)]
    counts = count([*step(200), *between, *step(0)], on_cuda=True)
    assert (counts.launches, counts.copies, counts.synchronisations) == (2.0, 1.0, 2.0)
    assert counts.reads == 1.0
    assert counts.operators == {"aten::_local_scalar_dense": 1.0, "aten::nonzero": 1.0}
    assert told(counts.operators) == "aten::_local_scalar_dense x1; aten::nonzero x1"
    assert told({str(n): 1.0 for n in range(8)}).endswith("5 x1; others x2")


def test_the_line_that_waits_is_ours(gpu):
    from gpu_trace import _line

    from avalanche_mgem.restriction import project

    def solver(gram, dots, lower):
        lines.append(_line(sys._getframe()))
        return lower

    lines = []
    project(torch.tensor([1.0, -1.0]), torch.tensor([[-1.0, 0.5]]), solver=solver)
    assert lines[0].startswith("avalanche_mgem/restriction/")


@pytest.mark.parametrize("arguments", [("--device", "tpu"), ("--only", "nothing")])
def test_what_cannot_be_measured_is_refused(run, arguments):
    assert run(*arguments).exit_code == 2
