"""avalanche-mgem report, and what every command has."""

import subprocess
import sys

import pytest

import avalanche_mgem

SIZES = {"experiences": 2, "train-per-experience": 20, "test-per-experience": 20, "jobs": 1}
TINY = [f"--{name}={value}" for name, value in SIZES.items()]


def test_a_report_of_two_comparisons(command, tmp_path):
    for name in ("naive", "gem"):
        command("compare", "--methods", name, "--seeds", 1, "--out", name, *TINY)
    result = command("report", "naive", "gem", "--out", "both")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"table.md", "table.tex", "results.csv", "heatmaps.png", "forgetting.png"} <= written
    assert "naive" in result.stdout
    assert "gem" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere"),
        (["done", "--methods", "gme"], "gme"),
        (["done", "--streams", "permuted"], "permuted"),
        (["done", "--out", "done"], "out"),
    ],
)
def test_what_a_report_cannot_do_is_said(command, tmp_path, options, message):
    command("compare", "--methods", "gem", "--seeds", 1, "--out", "done", *TINY)
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
