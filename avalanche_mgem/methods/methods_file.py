"""Methods from a TOML file: variants of the known ones, each a table of settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import as_path
from avalanche_mgem.files import read_toml
from avalanche_mgem.methods.method import Method
from avalanche_mgem.methods.registry import METHODS, find_method

_FORM = 'a method is a table such as [gem-weak] with base = "gem" and memory_strength = 0.1'


def load_methods(path: str | Path) -> list[Method]:
    """Read methods from a TOML file, in its order.

    Each table is a method under the table's name: `base`, a name in METHODS or several with "+"
    between; optionally `description`, one line; everything else is a setting of the base that is
    changed.

        [gem-weak]
        base = "gem"
        memory_strength = 0.1

    A table may have the name of a known method only if that is its base: it then takes its place.

    Raises:
        ValueError: a file that cannot be read or is not TOML, names no method, or has a table with
            an unknown base or setting, or with the name of another method. The message names the
            file and the table.
    """
    tables = read_toml("path", as_path("path", path))
    if not tables:
        raise ValueError(f"path {path}: holds no method; {_FORM}")
    methods = []
    for name, table in tables.items():
        try:
            methods.append(_method(name, table))
        except ValueError as error:
            raise ValueError(f"{path}, [{name}]: {error}") from error
    return methods


def _method(name: str, table: Any) -> Method:
    if not isinstance(table, dict):
        raise ValueError(f"is not a table, got {table!r}; {_FORM}")
    if not name.strip():
        raise ValueError("a method must have a name")
    settings = {key: value for key, value in table.items() if key not in ("base", "description")}
    base = _base(table)
    if name in METHODS and name != base.name:
        raise ValueError(
            f"{name!r} is a known method and the base is {base.name!r}; take another name"
        )
    variant = base.variant(name, **settings)
    return replace(variant, description=_description(table, base, settings))


def _base(table: dict[str, Any]) -> Method:
    if "base" not in table:
        raise ValueError(
            'base is missing: the method that is varied, such as base = "gem"; '
            f"known: {', '.join(METHODS)}"
        )
    base = table["base"]
    try:
        return find_method(base)
    except ValueError as error:
        raise ValueError(f"base: {str(error).removeprefix('methods: ')}") from error


def _description(table: dict[str, Any], base: Method, settings: dict[str, Any]) -> str:
    changes = ", ".join(f"{name}={value}" for name, value in settings.items())
    description = table.get("description", f"{base.name} with {changes or 'its own settings'}")
    if not isinstance(description, str):
        raise ValueError(f"description must be a text, got {description!r}")
    return description
