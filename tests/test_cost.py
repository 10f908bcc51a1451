"""The measurements of cost run, agree with GEMPlugin, and go on where they were stopped."""

import csv
import sys
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "benchmarks" / "cost"
SMALLEST = "own mlp T1 M25 p1 d1 gamma0 *"


@pytest.fixture
def cost(monkeypatch):
    """The command's module; it and what it imports are forgotten again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(sys.modules)
    import cost

    yield cost
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def run(cost):
    app = Typer()
    app.command()(cost.main)

    def _run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return _run


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_case_is_measured_kept_and_not_measured_again(run, cost, tmp_path, monkeypatch):
    first = run("--out", tmp_path, "--only", SMALLEST, "--repeats", 2)
    assert first.exit_code == 0, first.output
    (row,) = read(tmp_path / "cost.csv")
    assert row["case"] == "own mlp T1 M25 p1 d1 gamma0 vs-gem"
    assert float(row["parameter_difference"]) <= cost.SAME
    assert float(row["gradient_difference"]) <= cost.SAME
    assert float(row["value"]) > 0
    assert row["pairs"] == "2"
    assert row["avalanche-lib"]
    assert row["machine"]
    assert row["code"]
    assert row["case"] in (tmp_path / "table.md").read_text(encoding="utf-8")

    path = tmp_path / "cost.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"own mlp T5,unfin")  # what a killed process may leave
    monkeypatch.setitem(cost.MEASURES, "own", None)  # calling it again would fail
    again = run("--out", tmp_path, "--only", SMALLEST)
    assert again.exit_code == 0, again.output
    assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_groups_for_tasks_are_the_same_problem(cost):
    measure = cost.MEASURES["own"]
    case = cost.Case("own", "mlp", 1, 25, memory_groups=8, baseline="gem-groups")
    (row,) = measure(case, 2)
    assert row["gradient_difference"] <= cost.SAME
    assert row["parameter_difference"] <= cost.SAME


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_whole_run_tells_the_share_of_the_projection(cost):
    ratio, share = cost.MEASURES["train"](cost.Case("train", "mlp", 1, 25), 1)
    assert ratio["parameter_difference"] <= cost.SAME
    assert 0 < share["value"] < 1


def test_results_of_other_code_are_not_mixed(run, tmp_path):
    path = tmp_path / "cost.csv"
    path.write_text("case,what\nx,own\n", encoding="utf-8")
    refused = run("--out", tmp_path)
    assert refused.exit_code == 2
    assert path.read_text(encoding="utf-8") == "case,what\nx,own\n"


def test_one_thread_is_required(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run("--quick").exit_code == 2


def test_case_names_are_unique_and_the_figures_come_first(cost):
    cases = cost.all_cases()
    assert len({case.name for case in cases}) == len(cases)
    marked = [bool(case.figure) for case in cases]
    assert marked == sorted(marked, reverse=True)


def test_a_target_may_be_a_bound_from_above():
    sys.path.insert(0, str(FOLDER))
    try:
        from cost_cases import Target
    finally:
        sys.path.remove(str(FOLDER))
    assert Target(1.2, 1.4).verdict(1.3) == "reached"
    assert Target(1.2, 1.4).verdict(1.1) == "MISSED"
    assert Target(0.1, 0.03, below=True).verdict(0.02) == "aim"


def test_layers_differ_by_rounding_and_one_that_ends_the_process_is_named(cost, monkeypatch):
    import layout

    text = layout.conclusion(
        [
            ["all parameters", "network", *[1e-3] * 3, *[None] * 8],
            ["0", "Conv2d", *[1e-6] * 3, "0", "0", *[1e-7] * 6],
            ["1", "BatchNorm", *[1e-6] * 3, "0", "1", 1e-7, 3e-6, *[1e-7] * 4],
            ["2", layout.CRASHED, *[layout.CRASHED] * 11],
        ]
    )
    assert text.startswith("The process ended in 2. Alone, 1 (BatchNorm) loses most")
    assert "output is 3.0e-06 from float64 in channels_last and 1.0e-07" in text
    torch = layout.torch
    generator = torch.Generator().manual_seed(0)
    given, slope = torch.randn(2, 4, 3, 6, 6, generator=generator)
    found = layout.differences_alone(torch.nn.BatchNorm2d(3), given, slope)
    assert len(found) == len(layout.ALONE)
    assert all(0 < each < 1e-5 for each in found)
