"""The command, from its options to its exit codes."""

import csv
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from avalanche.training.supervised import Naive
from typer.testing import CliRunner

import avalanche_mgem
from avalanche_mgem.cli import app

COMMAND = Path(sys.executable).with_name("avalanche-mgem")
SIZES = {"experiences": 2, "train-per-experience": 20, "test-per-experience": 20, "jobs": 1}
TINY = [f"--{name}={value}" for name, value in SIZES.items()]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command in a folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*options):
        return CliRunner().invoke(app, [str(option) for option in options])

    return call


def test_compare_shows_a_table_and_continues(command, tmp_path):
    options = ["compare", "--methods", "naive, mgem-d", "--seeds", 2, *TINY]
    options += ["--set", "mgem-d.memory_groups=2", "--memory", 10]
    first, second = command(*options), command(*options)
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert "mgem-d, seed 1: ACC" in first.stdout
    assert "4 of 4 runs are finished already." in second.stdout
    with (tmp_path / "mgem-compare" / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["configuration.settings.memory_groups"] for row in table] == ["", "", "2", "2"]
    assert {row["configuration.training.memory"] for row in table} == {"10"}


def test_a_file_of_the_users_own(command, tmp_path):
    generator, labels = np.random.default_rng(0), np.arange(30) % 3
    data = {f"x_{part}": generator.random((30, 4, 4)) for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **data, y_train=labels, y_test=labels)
    result = command(
        *["compare", "--stream", "split:mine.npz", "--methods", "naive", "--experiences", 3],
        *["--seeds", 1, "--jobs", 1, "--data-root", tmp_path, "--out", "out"],
    )
    assert result.exit_code == 0, result.output
    assert "split:mine.npz" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", 0], "jobs must be a whole number >= 1, got 0"),
        (["--seeds", 0], "seeds must be a whole number >= 1, got 0"),
        (["--experiences", 0], "experiences must be a whole number >= 1, got 0"),
        (["--experiences", 11, "--stream", "split-digits"], "n_experiences=11 is more than the 10"),
        (["--train-per-experience", 0], "train_per_experience must be"),
        (["--test-per-experience", 10**6], "test_per_experience=1000000 is more than"),
        (["--batch-size", -1], "batch_size must be"),
        (["--epochs", 0], "epochs must be"),
        (["--learning-rate", "nan"], "learning_rate must be"),
        (["--memory", 0], "memory must be"),
        (["--methods", "mgem-d", "--memory", 4], "needs at least 8 patterns per experience"),
        (["--device", "gpu"], "device='gpu' cannot be used here"),
        (["--methods", "mgem-dd"], "did you mean 'mgem-d'"),
        (["--methods", "naive,"], "unknown method ''"),
        (["--stream", "permuted-digit"], "did you mean 'permuted-digits'"),
        (["--stream", "permuted:none.npz"], "found none at none.npz"),
        (["--stream", "split-mnist", "--data-root", "no", "--no-download"], "data_root='no'"),
        (["--set", "mgem-d.memory_groups"], "METHOD.SETTING=VALUE"),
        (["--set", "mgem-d.memory_group=2"], "did you mean 'memory_groups'"),
        (["--set", "mgem-d.memory_groups=two"], "mgem-d.memory_groups must be"),
        (["--set", "ewc.ewc_lambda=abc"], "ewc.ewc_lambda must be a finite number >= 0, got 'abc'"),
        (["--methods", "gem", "--set", "naive.a=1"], "'naive' is not among the methods"),
        (["--out", "notes.txt"], "notes.txt is a file"),
        (["--out", "."], "holds something else"),
        (["--out", "notes.txt/out"], "out: "),
    ],
)
def test_what_is_wrong_is_told_on_stderr_before_anything_happens(
    command, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(Naive, "train", lambda *_: pytest.fail("trained"))
    (tmp_path / "notes.txt").write_text("mine")
    result = command("compare", *options)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def fail(error):
    def train(*_):
        raise error

    return train


def test_a_failed_run_is_told_and_the_exit_code_says_so(command, monkeypatch):
    monkeypatch.setattr(Naive, "train", fail(ZeroDivisionError("by nothing")))
    result = command("compare", "--methods", "naive,gem", "--seeds", 1, *TINY)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 1 runs failed:\nnaive-seed0-")
    assert "ZeroDivisionError: by nothing" in result.stderr
    assert "gem, seed 0: ACC" in result.stdout


def test_ctrl_c_says_how_to_continue(command, monkeypatch):
    monkeypatch.setattr(Naive, "train", fail(KeyboardInterrupt()))
    result = command("compare", "--methods", "gem,naive", "--seeds", 1, *TINY)
    assert result.exit_code == 130
    assert "The same command continues." in result.stderr
    monkeypatch.undo()


def test_a_full_disk_is_told(command, monkeypatch):
    module = import_module("avalanche_mgem.experiment.compare")
    monkeypatch.setattr(module, "write_csv", fail(OSError("no space left")))
    result = command("compare", "--methods", "naive", "--seeds", 1, *TINY)
    assert (result.exit_code, result.stderr) == (1, "Error: no space left\n")


def test_a_bug_of_ours_is_no_mistake_of_the_user(command, monkeypatch):
    module = import_module("avalanche_mgem.experiment.compare")
    monkeypatch.setattr(module, "check_runs", fail(RuntimeError("a bug")))
    result = command("compare", "--methods", "naive", *TINY)
    assert isinstance(result.exception, RuntimeError)


def test_version_and_help(command):
    assert command("--version").stdout == f"{avalanche_mgem.__version__}\n"
    assert "compare" in command("--help").stdout
    help_text = command("compare", "--help").stdout
    assert all(option in help_text for option in ("--stream", "--methods", "--set", "--out"))


def test_the_installed_command_runs_in_a_pipe(tmp_path):
    out = tmp_path / "out"
    options = ["--methods", "naive,mgem-p-approx", "--seeds", "1", "--out", str(out), *TINY]
    result = subprocess.run(
        [COMMAND, "compare", *options], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "mgem-p-approx, seed 0: ACC" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout
    assert result.stdout.count("training") == 1
    assert len(list((out / "runs").iterdir())) == 2


def test_help_does_not_wait_for_avalanche():
    code = (
        "import sys; from avalanche_mgem.cli import app; app(['--help'], standalone_mode=False);"
        "assert not {'avalanche', 'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
