"""avalanche-mgem report, and what every command has."""

import subprocess
import sys

import pytest
from made_results import many, saved

import avalanche_mgem
from avalanche_mgem.cli.options import two_names


def test_a_report_of_two_comparisons(command, tmp_path):
    for name in ("naive", "gem"):
        saved(tmp_path / name, many([name], 1))
    result = command("report", "naive", "gem", "--out", "both")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"table.md", "table.tex", "results.csv", "heatmaps.png", "forgetting.png"} <= written
    assert "naive" in result.stdout
    assert "gem" in result.stdout


def test_two_methods_seed_by_seed(command, tmp_path, monkeypatch):
    monkeypatch.setattr("avalanche_mgem.report.folder._figures", lambda runs: {})
    saved(tmp_path / "done", [*many(["gem", "ewc"], 3), *many(["ewc"], 3, stream="other")])
    result = command("report", "done", "--paired", "gem, ewc", "--no-tensorboard")
    assert result.exit_code == 0, result.output
    assert "paired: gem - ewc" in result.stdout
    assert "p cannot be below 0.25" in " ".join(result.stdout.split())
    assert (tmp_path / "mgem-report" / "permuted-digits" / "paired.csv").exists()


@pytest.mark.parametrize(
    ("text", "known", "pair"),
    [
        ("a,b", {"a", "b"}, ["a", "b"]),
        (" a , b ", {"a", "b"}, ["a", "b"]),
        ("a [x=1, y=2],b", {"a [x=1, y=2]", "b"}, ["a [x=1, y=2]", "b"]),
        ("a [x=[1,...],b [x=[2,...]", {"a [x=[1,...]", "b [x=[2,...]"}, None),
        ("a,c", {"a", "b"}, ["a", "c"]),
        ("a", {"a", "b"}, ["a"]),
    ],
)
def test_names_with_commas_are_two_names(text, known, pair):
    assert two_names(text, known) == (pair or sorted(known))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere"),
        (["done", "--methods", "gme"], "gme"),
        (["done", "--streams", "permuted"], "permuted"),
        (["done", "--paired", "gem,ewc"], "paired: unknown 'ewc'"),
        (["done", "--out", "done"], "out"),
    ],
)
def test_what_a_report_cannot_do_is_said(command, tmp_path, options, message):
    saved(tmp_path / "done", many(["gem"], 1))
    result = command("report", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_version_and_help(command):
    assert command("--version").stdout == f"{avalanche_mgem.__version__}\n"
    assert "compare" in command("--help").stdout
    help_text = command("compare", "--help").stdout
    assert all(option in help_text for option in ("--stream", "--methods", "--set", "--out"))


def test_help_does_not_wait_for_avalanche():
    code = (
        "import sys; from avalanche_mgem.cli import app; app(['--help'], standalone_mode=False);"
        "assert not {'avalanche', 'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
