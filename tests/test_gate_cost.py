"""The measurement of what the gate costs runs, and writes what it has measured."""

import csv
import sys
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "benchmarks" / "cost"


@pytest.fixture
def run(monkeypatch):
    """The command; its modules are forgotten again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(sys.modules)
    import gate

    app = Typer()
    app.command()(gate.main)
    yield lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


def test_every_gate_has_a_row(run, tmp_path):
    done = run("--model", "mlp", "--rounds", 1, "--no-memory", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    with (tmp_path / "gate.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    gates = [(row["freeze"], row["mask_fraction"]) for row in rows]
    fractions = ("0.7", "0.4", "0.1")
    assert gates == [(freeze, T) for freeze in ("gradient", "update") for T in fractions]
    for row in rows:
        assert float(row["quartile_1"]) <= float(row["ratio"]) <= float(row["quartile_3"])
        assert float(row["step_ms"]) > 0
        assert row["verdict"] in ("aim", "reached", "MISSED")
        assert row["machine"]
        assert 0 <= int(row["fused"]) <= int(row["layers"]) == 2
    assert "update T=0.4" in done.output


def test_rows_of_other_networks_stay(run, tmp_path):
    path = tmp_path / "gate.csv"
    run("--model", "mlp", "--rounds", 1, "--no-memory", "--out", tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text + text.splitlines()[1].replace("mlp", "wide") + "\n", encoding="utf-8")
    run("--model", "mlp", "--rounds", 1, "--no-memory", "--out", tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        models = [row["model"] for row in csv.DictReader(file)]
    assert sorted(models) == ["mlp"] * 6 + ["wide"]


def test_a_profile_has_the_parts_of_a_step(run):
    done = run("--model", "mlp", "--rounds", 1, "--profile")
    assert done.exit_code == 0, done.output
    for part in ("before_forward", "backward", "optimizer_step", "update T=0.1"):
        assert part in done.output


@pytest.mark.parametrize(("variable", "model"), [("2", "mlp"), ("1", "mpl")])
def test_what_cannot_be_measured_is_refused(run, monkeypatch, variable, model):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert run("--model", model).exit_code == 2
