"""What values of a method's settings a sweep tries: ranges and choices, also from a TOML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import as_list, as_path, finite, flag
from avalanche_mgem.files import read_toml

_FORM = "a range, such as {low = 0.0, high = 1.0}, with log = true if wanted, or a list of values"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; integers where both bounds are integers.

    Args:
        low, high: the bounds, low < high.
        log: draw the logarithm evenly; low > 0.

    Raises:
        ValueError: bounds of another kind or order.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = finite(name, getattr(self, name))
            whole = isinstance(getattr(self, name), Integral)
            object.__setattr__(self, name, int(value) if whole else value)
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low} and high={self.high}")
        if flag("log", self.log) and self.low <= 0:
            raise ValueError(f"low must be > 0 where log=True, got low={self.low}")

    @property
    def of_integers(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def corners(self) -> tuple[Any, ...]:
        """The values that a method must take, for it to take all."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        """Whether a value is in the range."""
        number = isinstance(value, int if self.of_integers else int | float)
        return number and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choices:
    """One of these values: texts, numbers, True or False.

    Raises:
        ValueError: none, one twice, or a value of another kind.
    """

    values: tuple[str | float | bool, ...]

    def __post_init__(self) -> None:
        what = "a list of texts, numbers or booleans"
        if isinstance(self.values, Set):
            raise ValueError(f"values must be {what}, which has an order, got {self.values!r}")
        values = as_list("values", self.values, (str, int, float), what=what)
        for value in values:
            if isinstance(value, float):
                finite("values", value)
        object.__setattr__(self, "values", tuple(values))
        if not self.values or len({json.dumps(v) for v in self.values}) < len(self.values):
            raise ValueError(f"values must name at least one and none twice, got {self.values!r}")

    @property
    def corners(self) -> tuple[Any, ...]:
        """The values that a method must take, for it to take all."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return value in self.values


Dimension = Range | Choices
Space = Mapping[str, Dimension]
"""What is tried, by the name of the setting."""


def load_spaces(path: str | Path) -> dict[str, dict[str, Dimension]]:
    """Read spaces from a TOML file: a table a method, in it a range or a list for each setting.

        [mgem-d]
        memory_strength = {low = 0.0, high = 1.0}
        memory_groups = {low = 2, high = 32, log = true}
        memory_split = ["random", "class"]

    Raises:
        ValueError: a file that cannot be read, is not TOML or of another form; the message names
            file, table and setting. Whether a method has the setting is looked at by the sweep.
    """
    tables = read_toml("space", as_path("space", path))
    spaces: dict[str, dict[str, Dimension]] = {}
    for method, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"space {path}: {method!r} must be a table [METHOD], got {table!r}")
        for setting, value in table.items():
            try:
                spaces.setdefault(method, {})[setting] = _dimension(value)
            except ValueError as error:
                raise ValueError(f"space {path}, [{method}] {setting}: {error}") from error
    if not spaces:
        raise ValueError(f"space {path}: holds no setting; a table [METHOD] has {_FORM}")
    return spaces


def _dimension(value: Any) -> Dimension:
    if isinstance(value, list):
        return Choices(tuple(value))
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise ValueError(f"must be {_FORM}; got {value!r}")
    return Range(**value)
