"""The figures that are kept are those of the accuracy matrices that are kept beside them."""

import csv
from pathlib import Path

import pytest
from made_results import many
from typer import Typer
from typer.testing import CliRunner

from avalanche_mgem.report.markdown import markdown_table
from avalanche_mgem.results.csv import write_accuracy_csv, write_csv

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KEPT = sorted(path.parent for path in BENCHMARKS.glob("results/*/results.csv"))


@pytest.fixture
def rescore(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import rescore

    return rescore


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_results_have_the_scores_of_their_matrices(rescore, folder):
    rows = rescore.read(folder / "results.csv")
    if not (folder / "accuracy.csv").exists():
        assert not any(row["forgetting"] for row in rows)  # R would be needed
        return
    found = rescore.matrices(folder / "accuracy.csv")
    again = rescore.rescored(rows, found, [])
    assert list(again[0]) == list(rows[0])
    for row, other in zip(rows, again, strict=True):
        differing = [name for name in row if not same(row[name], other[name])]
        assert not differing, f"{rescore.key_of(row)}: {differing}"
    if (folder / "table.md").exists():
        results = [rescore.result_of(row, found[rescore.key_of(row)]) for row in rows]
        table = folder / "table.md"
        assert rescore.table_again(table, results) == table.read_bytes()


def same(one, other):
    return one == other or abs(float(one or "nan") - float(other or "nan")) < 1e-12


def test_scores_are_written_anew_and_nothing_else(rescore, tmp_path):
    results = [*many(["gem"], 2), *many(["a|b"], 2)]
    write_csv(results, tmp_path / "results.csv")
    write_accuracy_csv(results, tmp_path / "accuracy.csv")
    (tmp_path / "table.md").write_text(markdown_table([*results[2:], *results[:2]]))
    right = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["forgetting"] = "0.5"
        for name in ("aia", "min_acc", "wc_acc", "acc_task_il"):
            del row[name]
    (tmp_path / "results.csv").write_text(rescore.text_of(rows))
    (tmp_path / "table.md").write_text((tmp_path / "table.md").read_text().replace("0.", "1."))
    app = Typer()
    app.command()(rescore.main)
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == right
    (tmp_path / "accuracy.csv").unlink()
    assert CliRunner().invoke(app, [str(tmp_path), "--unknown", "forgetting"]).exit_code == 0
    assert {row["forgetting"] for row in rescore.read(tmp_path / "results.csv")} == {""}
    assert all(row["acc"] for row in rescore.read(tmp_path / "results.csv"))


def test_a_run_that_diverged_has_no_scores(rescore):
    (run,) = many(["ewc"], 1)
    row = {name: repr(value) for name, value in run.scores.items()}
    row |= {"method": "ewc", "stream": run.stream, "seed": str(run.seed), "seconds": "1.0"}
    key, found = rescore.key_of(row), run.accuracy
    (again,) = rescore.rescored([{**row, "diverged": "1"}], {key: found}, [])
    assert [again[name] for name in ("acc", "bwt", "forgetting", "aia")] == [""] * 4
    (again,) = rescore.rescored([{**row, "diverged": ""}], {key: found}, [])
    assert float(again["acc"]) == run.scores["acc"]
