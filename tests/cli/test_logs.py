"""--verbose shows what happens on the way, and nothing else does."""

import logging

import pytest
from typer.testing import CliRunner

from avalanche_mgem.cli import app
from avalanche_mgem.cli.logs import log_lines

SIZES = {"experiences": 2, "train-per-experience": 20, "test-per-experience": 20, "jobs": 1}
COMPARE = ["compare", "--methods=naive", "--seeds=1", *(f"--{k}={v}" for k, v in SIZES.items())]


def command(*options):
    return CliRunner().invoke(app, options)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, without_figures):
    monkeypatch.chdir(tmp_path)
    yield
    assert logging.getLogger("avalanche_mgem").handlers == []
    assert logging.getLogger("avalanche_mgem").level == logging.NOTSET
    assert logging.getLogger("avalanche_mgem").propagate


@pytest.mark.parametrize(
    "options",
    [["--verbose", *COMPARE], [*COMPARE, "--verbose"], ["--verbose", *COMPARE, "--verbose"]],
)
def test_it_stands_before_or_after_the_command(options):
    result = command(*options)
    assert result.exit_code == 0, result.output
    assert "avalanche_mgem" not in result.stdout
    lines = result.stderr.splitlines()
    assert sum("naive, seed 0: 2 experiences on cpu" in line for line in lines) == 1
    assert any("is to be run" in line for line in lines)
    assert "is finished" in command(*options).stderr


def test_without_it_nothing_is_shown():
    result = command(*COMPARE)
    assert (result.exit_code, result.stderr) == (0, "")


def test_every_command_has_it():
    for name in ("compare", "report", "theory"):
        assert "--verbose" in command(name, "--help").output


def test_an_error_ends_it(capsys):
    def fail():
        logging.getLogger("avalanche_mgem.x").info("at %d", 3)
        return 1 / 0

    with pytest.raises(ZeroDivisionError), log_lines(True):
        fail()
    assert capsys.readouterr().err.endswith(" avalanche_mgem.x: at 3\n")


def test_what_is_no_news_is_left_out(capsys):
    with log_lines(True):
        logging.getLogger("avalanche_mgem.x").debug("details")
        logging.getLogger("other").info("of others")
    with log_lines(False):
        logging.getLogger("avalanche_mgem.x").info("not asked for")
    assert capsys.readouterr().err == ""
