"""Options in groups become the options of a command."""

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from avalanche_mgem.cli import app, options
from avalanche_mgem.cli.groups import with_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large."""

    width: Annotated[int, typer.Option("--width", "-w", help="In pixels.")] = 3
    names: Annotated[list[str] | None, typer.Option("--name")] = None


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Which colour."""

    red: Annotated[bool, typer.Option(help="Or not.")] = False


def called(*arguments):
    made = []

    @with_groups
    def draw(
        path: Annotated[str, typer.Argument()],
        size: Size,
        times: Annotated[int, typer.Option(help="How often.")] = 1,
        *,
        colour: Colour,
    ) -> None:
        """Draw."""
        made.append((path, size, times, colour))

    command = typer.Typer(add_completion=False)
    command.command()(draw)
    result = CliRunner().invoke(command, arguments)
    return made, result


def test_a_command_is_called_with_its_groups():
    made, result = called("a", "-w", "5", "--name", "x", "--name", "y", "--red", "--times", "2")
    assert result.exit_code == 0, result.output
    assert made == [("a", Size(width=5, names=["x", "y"]), 2, Colour(red=True))]


def test_defaults_are_those_of_the_fields():
    made, _ = called("a")
    assert made == [("a", Size(), 1, Colour())]


def test_help_shows_all_with_their_texts():
    _, result = called("--help")
    for text in ("Draw.", "--width", "In pixels.", "--name", "--times", "--no-red", "Or not."):
        assert text in result.output


def test_a_wrong_type_is_refused_by_its_option():
    made, result = called("a", "--width", "wide")
    assert (made, result.exit_code) == ([], 2)
    assert "--width" in result.output


def test_two_of_one_name_are_refused():
    def draw(size: Size, width: Annotated[int, typer.Option()] = 1) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'width'"):
        with_groups(draw)


def test_no_option_of_compare_is_said_twice():
    groups = [value for name, value in vars(options).items() if name.endswith("Options")]
    names = [name for group in groups for name in inspect.signature(group).parameters]
    assert len(names) == len(set(names)) >= 35
    (compare,) = (each for each in app.registered_commands if each.callback.__name__ == "compare")
    assert set(inspect.signature(compare.callback).parameters) == set(names)
