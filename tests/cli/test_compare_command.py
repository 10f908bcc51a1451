"""avalanche-mgem compare, from its options to its exit codes."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from avalanche.training.supervised import Naive
from experiment.text_runs import write_all
from PIL import Image

from avalanche_mgem.experiment import METHODS, load_results

COMMAND = Path(sys.executable).with_name("avalanche-mgem")
PARTS = ("train", "test")
SIZES = {"experiences": 2, "train-per-experience": 20, "test-per-experience": 20, "jobs": 1}
TINY = [f"--{name}={value}" for name, value in SIZES.items()]


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


def test_checkpoints_are_saved_unless_told_otherwise(command, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "avalanche_mgem.experiment.resuming.save_checkpoint",
        lambda strategy, path, **_: saved.append(path),
    )
    options = ["compare", "--methods", "naive", "--seeds", 1, *TINY]
    for option, count in (("--no-checkpoints", 0), ("--checkpoints", 1)):
        result = command(*options, option, "--out", option.strip("-"))
        assert result.exit_code == 0, result.output
        assert len(saved) == count


def test_tasks_that_share_classes_on_spoilt_images(command):
    result = command(
        *["compare", "--stream", "correlated-digits+noise:2,none", "--methods", "naive"],
        *["--experiences", 3, "--classes-per-experience", 4, "--shared-classes", 0.5],
        *["--train-per-experience", 20, "--test-per-experience", 20, "--heads", "multi"],
        *["--seeds", 1, "--jobs", 1],
    )
    assert result.exit_code == 0, result.output
    assert "correlated-digits+noise:2,none" in result.stdout


def test_validation_is_shown_beside_the_test_and_reported(command, tmp_path, monkeypatch):
    monkeypatch.setattr("avalanche_mgem.report.folder._figures", lambda runs: {})
    options = ["compare", "--methods", "naive", "--seeds", 1, *TINY]
    plain, held_out = command(*options), command(*options, "--validation", 0.2)
    assert (plain.exit_code, held_out.exit_code) == (0, 0), held_out.output
    assert "validation data" not in plain.stdout
    assert "permuted-digits, validation data" in held_out.stdout
    with (tmp_path / "mgem-compare" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["configuration.training.validation"] == "0.2"
    assert 0 <= float(row["validation_acc"]) <= 1
    assert len(list((tmp_path / "mgem-compare" / "runs").iterdir())) == 2
    reported = command("report", "mgem-compare", "--no-tensorboard")
    assert reported.exit_code == 0, reported.output
    assert "validation data" in reported.stdout
    table = (tmp_path / "mgem-report" / "table.md").read_text()
    assert "naive [validation=0.2]" in table.split("Stream: permuted-digits, validation data")[1]
    refused = command(*options, "--validation", 1)
    assert refused.exit_code == 1
    assert "validation must be a share >= 0 and below 1, got 1.0" in refused.output


def test_a_folder_of_images_and_what_it_holds(command, tmp_path):
    for part in PARTS:
        for label in range(4):
            folder = tmp_path / "birds" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (5, 4), (60 * label, 20 * i, 0)).save(folder / f"{i}.png")
    options = ["compare", "--stream", "split:birds/", "--methods", "naive", "--experiences", 2]
    options += ["--image-size", 4, "--data-root", tmp_path, "--seeds", 1, "--jobs", 1]
    first = command(*options)
    assert first.exit_code == 0, first.output
    assert "runs are finished already" in command(*options).stdout
    Image.new("RGB", (5, 4), (9, 9, 9)).save(tmp_path / "birds/train/class0/another.png")
    assert "runs are finished already" not in command(*options).stdout  # it is another stream now


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


def test_the_methods_are_listed_with_those_of_a_file(command, tmp_path):
    (tmp_path / "methods.toml").write_text('[gem-weak]\nbase = "gem"\nmemory_strength = 0.1\n')
    result = command("compare", "--list", "--methods-file", "methods.toml")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in (*METHODS, "gem-weak"))
    assert not (tmp_path / "mgem-compare").exists()


def test_a_files_methods_join_the_comparison(command, tmp_path):
    (tmp_path / "methods.toml").write_text('[gem-weak]\nbase = "gem"\nmemory_strength = 0.1\n')
    options = ["--methods", "naive,gem-weak", "--methods-file", "methods.toml", "--seeds", 1]
    result = command("compare", *options, *TINY)
    assert result.exit_code == 0, result.output
    assert "gem-weak, seed 0: ACC" in result.stdout


@pytest.mark.parametrize("heads", ["single", "growing", "multi"])
def test_class_and_task_incremental_streams(command, heads):
    options = ["--stream", "split-digits", "--heads", heads, "--methods", "naive,lwf,mgem-d"]
    options += ["--optimizer", "sgd", "--momentum", 0.5, "--hidden", "20", "--seeds", 1]
    result = command("compare", *options, "--memory", 10, *TINY)
    assert result.exit_code == 0, result.output
    assert "mgem-d, seed 0: ACC" in result.stdout


def test_evaluations_within_the_experiences_are_kept(command):
    options = ["--methods", "naive", "--seeds", 1, "--eval-every", 1, "--out", "runs"]
    result = command("compare", *options, *TINY)
    assert result.exit_code == 0, result.output
    (run,) = load_results("runs")
    assert list(run.curve.iterations) == [0, 1, 2, 3, 4]


def test_domains_and_a_model_of_the_users_own(command, tmp_path):
    for name in ("day", "night"):
        images = {f"x_{part}": np.random.default_rng(0).random((30, 4, 4)) for part in PARTS}
        labels = {f"y_{part}": np.arange(30) % 3 for part in PARTS}
        np.savez(tmp_path / f"{name}.npz", **images, **labels)
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def linear(shape, classes):\n"
        "    size = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))\n"
    )
    options = ["--stream", "domains:day.npz,night.npz", "--image-size", 4, "--seeds", 1]
    options += ["--model", "own_networks:linear", "--methods", "naive,mgem-p", "--jobs", 1]
    result = command("compare", *options)
    assert result.exit_code == 0, result.output
    assert "mgem-p, seed 0: ACC" in result.stdout


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of tasks, and folders of models."""
    return write_all(tmp_path_factory.mktemp("texts"))


def on_text(texts, *options, model="bert"):
    places = {"--data-root": texts / "tasks", "--model": texts / model}
    given = [part for name, place in places.items() for part in (name, place)]
    usual = ["--tasks", "colours,animals", "--max-length", 32, "--seeds", 1, "--jobs", 1]
    return ["compare", "--stream", "text", *given, *usual, *options]


def test_text_is_compared_as_images_are_and_continues(command, texts, tmp_path):
    options = on_text(texts, "--memory", 8, "--train-per-experience", 12)
    first, second = command(*options), command(*options)
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert "lora+migu, seed 0: ACC" in first.stdout
    assert "8 of 8 runs are finished already." in second.stdout
    with (tmp_path / "mgem-compare" / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["configuration.training.optimizer"] for row in table} == {"adamw"}
    assert {row["configuration.training.weight_decay"] for row in table} == {"0.01"}
    assert {row["configuration.training.learning_rate"] for row in table} == {"0.0001"}
    assert {row["configuration.training.length_buckets"] for row in table} == {"50"}
    assert {row["configuration.stream.arguments.train_per_experience"] for row in table} == {"12"}


@pytest.mark.parametrize(("model", "form"), [("t5", "text-to-text"), ("llama", "causal")])
def test_answers_in_words(command, texts, model, form):
    options = ["--form", form, "--methods", "migu", "--optimizer", "sgd", "--learning-rate", 0.1]
    result = command(*on_text(texts, *options, model=model))
    assert result.exit_code == 0, result.output
    assert "migu, seed 0: ACC" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--order", 1], "order='1' and tasks="),
        (["--tasks", "colour"], "did you mean 'colours'"),
        (["--data-root", "nowhere"], "folder='nowhere' does not exist"),
        (["--model", "./nowhere"], "tokenizer='./nowhere' is no folder"),
        (["--model", ""], "model is needed for text"),
        (["--max-length", 99], "max_length=99: the model has positions for 40 tokens"),
        (["--form", "clasification"], "form: unknown 'clasification'; did you mean"),
        (["--form", "causal", "--heads", "multi"], "heads='multi': a model has none"),
        (["--form", "text-to-text"], "model="),
        (["--heads", "many"], "heads: unknown 'many'"),
        (["--heads", "single", "--task-labels"], "task_labels: with heads='single'"),
        (["--experiences", 2], "experiences=2: the stream text has no such option"),
        (["--methods", "migu", "--set", "migu.mask_fraction=1"], "migu.mask_fraction must be"),
        (["--methods", "migu", "--set", "migu.target_modules=quer"], "did you mean 'query'"),
        (["--methods", "naive+migu"], "'naive' is no plugin"),
        (["--methods", "lora+migu", "--set", "lora+migu.seed=1"], "name lora.seed or migu.seed"),
        (["--methods", "gem"], "gem: Avalanche's GEMPlugin"),
    ],
)
def test_what_is_wrong_with_text_is_told_before_anything_happens(
    command, texts, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(Naive, "train", lambda *_: pytest.fail("trained"))
    result = command(*on_text(texts, *options))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "sdg"], "optimizer: unknown 'sdg'; did you mean 'sgd'"),
        (["--momentum", 1.0], "momentum must be below 1"),
        (["--weight-decay", -1], "weight_decay must be"),
        (["--model", "resnet"], "model='resnet' is unknown; did you mean 'slim-resnet18'"),
        (["--model", "no_such_module:factory"], "no_such_module"),
        (["--hidden", "a,b"], "hidden must be widths such as 100,100"),
        (["--heads", "many"], "heads: unknown 'many'"),
        (["--order", 1], "order='1': is of text only, got stream='permuted-digits'"),
        (["--stream", "txt"], "did you mean 'text'"),
        (["--stream", "text"], "model is needed for text"),
        (["--stream", "text", "--model", "x", "--order", 7], "order: unknown '7'; known: 1, 2"),
        (["--methods", "replay+joint"], "'joint' is no plugin"),
        (["--stream", "split-digits", "--task-labels"], "task_labels: with heads='single'"),
        (["--methods-file", "nowhere.toml"], "nowhere.toml"),
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
        (["--device", "gpu"], "device must be a torch device such as 'cpu'"),
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
    monkeypatch.setattr(
        "avalanche_mgem.experiment.comparison.write_csv", fail(OSError("no space left"))
    )
    result = command("compare", "--methods", "naive", "--seeds", 1, *TINY)
    assert (result.exit_code, result.stderr) == (1, "Error: no space left\n")


def test_a_bug_of_ours_is_no_mistake_of_the_user(command, monkeypatch):
    monkeypatch.setattr("avalanche_mgem.experiment.checks.check_runs", fail(RuntimeError("a bug")))
    result = command("compare", "--methods", "naive", *TINY)
    assert isinstance(result.exception, RuntimeError)


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
