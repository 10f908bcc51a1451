"""What the training of a strategy may replace in it, as its own code and its plugins' tell.

CoPE's plugin sets a criterion of its own when training begins, L2P makes its optimiser anew for
each experience, ExpertGate takes a plugin in and out. A run that has trained then has other classes
than the strategy that it is loaded into, and is the same run.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import CellType, CodeType, FunctionType
from typing import Any

from avalanche_mgem.checkpoint.places import lasting_plugins

# Attributes of a strategy, by what an identity calls them.
_ATTRIBUTES = {"optimizer": "optimizer", "_criterion": "criterion", "plugins": "plugins"}
_CHANGES = frozenset({"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"})
_LOADS = ("LOAD_ATTR", "LOAD_METHOD")  # of an attribute, and in Python before 3.12 of a method
_OURS = f"{__name__.partition('.')[0]}."
_DEPTH = 3  # of functions that call functions


def replaced_in_training(strategy: Any) -> set[str]:
    """Return which of "optimizer", "criterion" and "plugins" are set outside of constructors.

    Looked at is the code of the methods of the strategy and of its plugins, of functions that they
    hold, and of functions of their modules that they call.
    """
    found: set[str] = set()
    seen: set[CodeType] = set()
    for part in (strategy, *lasting_plugins(strategy)):
        for function in _functions_of(part):
            found |= _sets(function, seen, _DEPTH)
    return found


def _functions_of(part: Any) -> Iterator[FunctionType]:
    """The methods of an object, its constructors apart, and the functions among its attributes."""
    for each in type(part).__mro__:
        # Of ours, only passing plugins change the list; see `lasting_plugins`.
        if not each.__module__.startswith(_OURS):
            for name, value in vars(each).items():
                if name != "__init__" and (function := _function(value)) is not None:
                    yield function
    for value in getattr(part, "__dict__", {}).values():
        held = value.values() if isinstance(value, Mapping) else value
        for each in held if isinstance(value, Mapping | list | tuple) else (value,):
            if isinstance(each, FunctionType):
                yield each


def _function(value: Any) -> FunctionType | None:
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _sets(function: FunctionType, seen: set[CodeType], depth: int) -> set[str]:
    """What a function sets, and what those functions set that it calls or holds."""
    found: set[str] = set()
    avalanches = function.__module__.startswith("avalanche.")
    for code in _codes(function.__code__):
        if code in seen:
            continue
        seen.add(code)
        found |= _sets_itself(code, loosely=not avalanches)
        for each in _functions_in(function, code) if depth else ():
            if not each.__module__.startswith(_OURS):
                found |= _sets(each, seen, depth - 1)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of the functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions_in(function: FunctionType, code: CodeType) -> Iterator[FunctionType]:
    """The functions of its module that a function names, its defaults, and those it closes over."""
    named = (function.__globals__.get(name) for name in code.co_names)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    cells = (cell for cell in function.__closure__ or () if cell != CellType())
    for each in (*named, *defaults, *(cell.cell_contents for cell in cells)):
        if isinstance(each, FunctionType):
            yield each


def _sets_itself(code: CodeType, *, loosely: bool) -> set[str]:
    """What code sets. loosely: the list of plugins may have another name as it is changed."""
    names = set(code.co_names)
    stored: set[str] = set()
    if "setattr" in names:
        stored |= {each for each in code.co_consts if isinstance(each, str)}
    if names & _ATTRIBUTES.keys():
        steps = list(dis.get_instructions(code))
        stored |= {each.argval for each in steps if each.opname == "STORE_ATTR"}
        changes = any(
            one.argval == "plugins" and other.argval in _CHANGES
            for one, other in pairwise(steps)
            if one.opname in _LOADS and other.opname in _LOADS
        )
        if changes or (loosely and "plugins" in names and names & _CHANGES):
            stored.add("plugins")
    return {what for attribute, what in _ATTRIBUTES.items() if attribute in stored}
