"""Checks of what a user passes, each with an error that names the argument."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_MOST_NAMES = 25


def positive_int(name: str, value: object, *, minimum: int = 1) -> int:
    """Return `value` as an int, or raise ValueError: it must be a whole number >= minimum."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return int(value)


def finite(name: str, value: object, *, minimum: float = -math.inf, above: bool = False) -> float:
    """Return `value` as a float, or raise ValueError: it must be finite and >= (or >) minimum."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    in_range = number > minimum if above else number >= minimum
    if not (math.isfinite(number) and in_range):
        bound = "" if minimum == -math.inf else f" {'>' if above else '>='} {minimum:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
    return number


def torch_device(name: str, value: Any) -> torch.device:
    """Return `value` as a torch device, or raise ValueError."""
    import torch

    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} must be a torch device such as 'cpu' or 'cuda:0', got {value!r}"
        ) from error


def one_of(name: str, value: object, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`, or raise ValueError with the nearest names."""
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{name}: unknown {value!r}; {suggestion(str(value), choices)}")


def suggestion(value: str, choices: Iterable[str]) -> str:
    """Say which of `choices` come nearest to `value`, and what they are; of many, the first."""
    names = list(choices)
    near = get_close_matches(value, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{hint}known: {', '.join(names[:_MOST_NAMES])}{more}"
