"""A registry of methods that other packages add to: by a call, or by an entry point."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from avalanche_mgem.arguments import as_list, flag, instance
from avalanche_mgem.methods.method import Method

GROUP = "avalanche_mgem.methods"
"""The group of entry points by which packages add methods."""

_LOG = logging.getLogger(__name__)
_TAKEN_APART = "+,.="  # "replay+migu", "--methods gem,agem", "--set gem.memory_strength=0.1"


class MethodRegistry(Mapping[str, Method]):
    """Methods by name, in the order in which they came.

    It reads as a dict does. `register` adds a method, and so do installed packages that have an
    entry point in the group "avalanche_mgem.methods": it names a `Method`, or a function without
    arguments that returns one or several. Entry points are loaded when a name is asked for that is
    not known without them, or when the methods are listed. One that fails is a warning that names
    its package; a name that is taken stays what it was.
    """

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods = {method.name: method for method in methods}
        self._complete = False  # whether entry points have been loaded

    def register(self, method: Method, *, replace: bool = False) -> Method:
        """Add a method, and return it.

        Args:
            method: found by its name from now on, in this process; worker processes are sent it.
            replace: take the place of a method that has the name.

        Raises:
            ValueError: a name that is taken, or that the command takes apart; no method.
        """
        instance("method", method, Method, what="a Method")
        name = method.name
        if name != name.strip() or any(letter in name for letter in _TAKEN_APART):
            raise ValueError(
                f"method: the name {name!r} cannot be asked for; it must be without spaces at its "
                f"ends, and without {' '.join(_TAKEN_APART)}"
            )
        taken = self._methods.get(name, method) is not method
        if taken and not flag("replace", replace):
            raise ValueError(
                f"method: the name {name!r} is taken; take another one, or pass replace=True"
            )
        self._methods[name] = method
        return method

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            self._load_entry_points()
        return self._methods[name]

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(self._methods)

    def __len__(self) -> int:
        self._load_entry_points()
        return len(self._methods)

    def _load_entry_points(self) -> None:
        if self._complete:
            return
        self._complete = True  # before, because what is loaded may look methods up
        for point in entry_points(group=GROUP):
            methods: list[Method] = []
            with _errors_warned_of(point):
                methods = _methods_of(point)
                names = ", ".join(method.name for method in methods)
                _LOG.info("entry point %s of %s: %s", point.name, _package(point), names)
            for method in methods:
                with _errors_warned_of(point):
                    self.register(method)


@contextmanager
def _errors_warned_of(point: EntryPoint) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # other people's code, which may raise anything
        warnings.warn(
            f"the package {_package(point)} adds methods by the entry point {point.name!r} "
            f"({point.value}), which fails: {type(error).__name__}: {error}",
            stacklevel=2,
        )


def _methods_of(point: EntryPoint) -> list[Method]:
    found = point.load()
    if callable(found):
        found = found()
    methods: list[Method] = as_list(
        "entry point",
        [found] if isinstance(found, Method) else found,
        Method,
        what="a Method, or a function that returns one or several",
    )
    return methods


def _package(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else str(point.dist.metadata["Name"])
