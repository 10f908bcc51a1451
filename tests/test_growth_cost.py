"""The measurements of how cost grows, and those against a peer, run."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "benchmarks" / "cost"


@pytest.fixture
def run(monkeypatch):
    """Run a command by its name; it and what it imports are forgotten again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(sys.modules)

    def _run(name, *arguments):
        app = Typer()
        app.command()(__import__(name).main)
        return CliRunner().invoke(app, [str(a) for a in arguments])

    yield _run
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.mark.slow
def test_growth_is_measured_drawn_and_fitted(run, tmp_path):
    done = run("growth", "--tiny", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    with (tmp_path / "growth.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    methods = {row["method"] for row in rows}
    assert {(row["tasks"], row["method"]) for row in rows} == {
        (tasks, method) for tasks in "12" for method in methods
    }
    assert all(float(row["ms"]) > 0 and float(row["mib"]) >= 0 for row in rows)
    table = (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert all(method in table for method in methods)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_slopes_are_those_of_lines(run):
    assert run("growth", "--help").exit_code == 0
    from growth_figure import slope

    assert slope([(1, 5.0), (20, 43.0), (100, 203.0)]) == pytest.approx(2.0)


def test_a_peer_is_compared_or_left_out(run, monkeypatch):
    left_out = run("peer", "--rows", 3, "--columns", 50)
    assert left_out.exit_code == 0, left_out.output
    import peer

    def exact(gradient, rows):
        return peer.project(gradient, rows).gradient

    monkeypatch.setattr(peer, "find_peer", lambda: exact)
    done = run("peer", "--rows", 3, "--columns", 50, "--repeats", 2)
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == len(peer.KINDS)
    for kind in peer.KINDS:
        gradient, rows = peer.make_problem(kind, 30, 400)
        z = peer.project(gradient, rows).gradient
        assert peer._violation(z, gradient, rows) < 1e-6
        assert torch.isfinite(z).all()
