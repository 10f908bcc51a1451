"""The command in this process."""

import pytest
from typer.testing import CliRunner

from avalanche_mgem.cli import app


@pytest.fixture
def command(tmp_path, monkeypatch, without_figures):
    """Run the command in a folder of its own, in this process; comparisons draw no figures."""
    monkeypatch.chdir(tmp_path)

    def call(*options):
        return CliRunner().invoke(app, [str(option) for option in options])

    return call
