"""Names that are imported on first use: Avalanche and torch each take seconds to import."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Lazy:
    """A class or function by its place, imported when it is called.

    It can be compared, hashed, pickled and asked for its options without an import.

    Args:
        place: "package.module:name", of the module that defines it.
        options: the arguments that it takes by keyword, where they are not to be looked up; of a
            strategy, those of Avalanche's templates may be left out. Another `Lazy`: as that one's.
            None: its signature tells, which of ours is read from the source, without an import.

    Raises:
        ValueError: a place of another form.
    """

    place: str
    options: tuple[str, ...] | Lazy | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.place, str) or not _PLACE.fullmatch(self.place):
            raise ValueError(f"place must be of the form 'package.module:name', got {self.place!r}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import it and call it."""
        return self.resolve()(*args, **kwargs)

    @property
    def module(self) -> str:
        """Full name of the module."""
        return self.place.partition(":")[0]

    @property
    def name(self) -> str:
        """Its name in the module."""
        return self.place.partition(":")[2]

    @property
    def is_ours(self) -> bool:
        """Whether it is a class or function of this package or of Avalanche."""
        return self.module.startswith(("avalanche_mgem.", "avalanche."))

    def resolve(self) -> Any:
        """Import it and return it."""
        return getattr(import_module(self.module), self.name)


def resolved(value: Any) -> Any:
    """Return what a `Lazy` stands for, anything else as it is."""
    return value.resolve() if isinstance(value, Lazy) else value


def place_of(value: Any) -> str | None:
    """Return "package.module:name" of a class, a function or a `Lazy`; None for anything else."""
    if isinstance(value, Lazy):
        return value.place
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}:{value.__qualname__}"
    return None


def option_names(function: Any) -> set[str]:
    """The names of the arguments that `function` (or a class) takes by keyword."""
    if isinstance(function, Lazy):
        if isinstance(function.options, Lazy):
            return option_names(function.options)
        written = function.options is None
        options = _written_options(function.place) if written else function.options
        if options is not None:
            return set(options)
    parameters = inspect.signature(resolved(function)).parameters.values()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@cache
def _written_options(place: str) -> tuple[str, ...] | None:
    """Read the arguments of a class of ours from its file; None: it is not there to be read."""
    module, _, name = place.partition(":")
    package, *path = module.split(".")
    file = Path(__file__).parent.joinpath(*path).with_suffix(".py")
    if package != __package__ or not file.is_file():
        return None
    classes = {
        node.name: node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    while name in classes:
        made = [node for node in classes[name].body if isinstance(node, ast.FunctionDef)]
        for function in made:
            if function.name == "__init__":
                given = function.args
                return tuple(each.arg for each in (*given.args[1:], *given.kwonlyargs))
        base = next(iter(classes[name].bases), None)
        name = base.id if isinstance(base, ast.Name) else ""
    return None


def public_names(
    package: str, homes: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package that imports its names on first use.

    homes: for each module of the package the public names that it has. Modules that have not been
    imported are attributes too, as they would be if the package imported them all.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def find(name: str) -> object:
        if name in home_of:
            value: object = getattr(import_module(home_of[name]), name)
        elif not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def known() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return find, known
