"""Checks of what a user passes, each with an error that names the argument."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_MOST_NAMES = 25
LARGEST = 2**63 - 1  # int64
_LONGEST = 100  # letters of a value in an error

DEVICE_TYPES = (
    *("cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga"),
    *("maia", "xla", "lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone"),
)
"""What torch's devices are called."""
_DEVICE = re.compile(rf"({'|'.join(DEVICE_TYPES)})(:(\d|[1-9]\d|1[01]\d|12[0-7]))?")  # an int8


def positive_int(name: str, value: object, *, minimum: int = 1) -> int:
    """Return `value` as an int, or raise ValueError: it must be a whole number >= minimum."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}")
    return int(value)


def bounded_int(name: str, value: object, *, minimum: int = 1) -> int:
    """As `positive_int`, for lengths of dimensions and loops: at most what torch can count to."""
    number = positive_int(name, value, minimum=minimum)
    if number > LARGEST:
        raise ValueError(f"{name} must be a whole number <= {LARGEST}, got {value!r}")
    return number


def flag(name: str, value: object) -> bool:
    """Return `value` as a bool, or raise ValueError: it must be True or False, not a text."""
    if isinstance(value, bool) or _is_numpys_bool(value):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}")


def as_text(name: str, value: object, *, what: str = "a text") -> str:
    """Return `value` as a str, or raise ValueError: it must be one and not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be {what}, got {value!r}")
    return str(value)


def as_path(name: str, value: object) -> Path:
    """Return `value` as a Path, or raise ValueError: it must be a text or a path."""
    given = fspath(value) if isinstance(value, str | PathLike) else None
    if not isinstance(given, str) or "\0" in given:
        raise ValueError(f"{name} must be a path, got {value!r}")
    return Path(given)


def as_file(name: str, value: object) -> Path:
    """As `as_path`, for what is to be a file: "", "." and "/" name none."""
    path = as_path(name, value)
    if not path.name:
        raise ValueError(f"{name} must name a file, got {str(value)!r}")
    return path


def instance(name: str, value: object, kind: type, *, what: str) -> Any:
    """Return `value` if it is an instance of `kind`, or raise ValueError: `what` it must be."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {what}, got {_shown(value)}")
    return value


def as_list(name: str, value: object, kind: type | tuple[type, ...], *, what: str) -> list[Any]:
    """Return the items of a collection that is no text, or raise ValueError.

    All must be instances of `kind`, which `what` says. None at all will do.
    """
    error: Exception | None = None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        try:
            found = list(value)
        except TypeError as no_list:  # a tensor of no dimensions
            error = no_list
        else:
            if all(isinstance(item, kind) for item in found):
                return found
    raise ValueError(f"{name} must be {what}, got {_shown(value)}") from error


def finite(name: str, value: object, *, minimum: float = -math.inf, above: bool = False) -> float:
    """Return `value` as a float, or raise ValueError: it must be finite and >= (or >) minimum."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    in_range = number > minimum if above else number >= minimum
    if not (math.isfinite(number) and in_range):
        bound = "" if minimum == -math.inf else f" {'>' if above else '>='} {minimum:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
    return number


def real_tensor(name: str, value: object, *, shape: str | None = None) -> torch.Tensor:
    """Return `value`, or raise ValueError: it must be a dense tensor of real numbers.

    shape: its dimensions, such as "[K, P]"; None: any.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {_shown(value)}")
    dense = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    fits = shape is None or value.ndim == 1 + shape.count(",")
    if not (dense and fits) or value.is_complex():
        raise ValueError(
            f"{name} must be {'' if shape is None else f'{shape}, '}a dense tensor of real "
            f"numbers, got {value.dtype} {tuple(value.shape)}, {value.layout} on {value.device}"
        )
    return value


def torch_device(name: str, value: Any) -> torch.device:
    """Return `value` as a torch device, or raise ValueError."""
    import torch

    try:
        return torch.device(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(_no_device(name, value)) from error


def device_name(name: str, value: Any) -> str:
    """Return the text of `torch_device`, where it can be told without importing torch.

    Text that torch itself knows is taken, other text refused, unless torch has been imported or a
    package adds devices to it.
    """
    if isinstance(value, str):
        if _DEVICE.fullmatch(value):
            return value
        if "torch" not in sys.modules and not entry_points(group="torch.backends"):
            raise ValueError(_no_device(name, value))
    return str(torch_device(name, value))


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


def _no_device(name: str, value: object) -> str:
    return f"{name} must be a torch device such as 'cpu' or 'cuda:0', got {value!r}"


def _is_numpys_bool(value: object) -> bool:
    numpy = sys.modules.get("numpy")  # whoever has such a value has imported it
    return numpy is not None and isinstance(value, numpy.bool_)


def _shown(value: object) -> str:
    """The value in short; of what is long or large, as a model, its type alone."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST else type(value).__name__
