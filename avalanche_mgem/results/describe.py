"""Any setting as JSON values that differ when the setting does."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from avalanche_mgem.lazy import Lazy
from avalanche_mgem.moved import former_module

_OURS = ("avalanche.", "avalanche_mgem.")
_LONGEST_STATE = 300  # characters of JSON that an object's state may take before it is a digest
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe(value: Any) -> Any:
    """Turn a setting into JSON values: the same in every process, others when the setting changes.

    A function or class of the user's own is told by its name, its source text and the values that
    it holds (defaults and enclosed variables); what it calls is not seen. An object is told by its
    class and its attributes, an array or a tensor by a digest of its numbers. The order of a
    mapping counts: it may decide, as that of modules does.
    """
    return _Description().of(value)


def digest(data: bytes) -> str:
    """Return a short name for what `data` holds."""
    return hashlib.sha256(data).hexdigest()[:16]


class _Description:
    """One walk over a value and all that it holds, each object once, however often it is met."""

    def __init__(self) -> None:
        self._number_of: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no two objects have one id
        self._containers: set[int] = set()  # those that are being walked through

    def of(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return f"{type(value).__name__}.{value.name}"
        if value is None or isinstance(value, str | bool):
            return value
        if isinstance(value, Real):
            return _number(value)
        if _is_one_of("torch", "Tensor", value) or _is_one_of("numpy", "ndarray", value):
            return _array(value)
        if isinstance(value, Lazy):
            return self._lazy(value)
        if inspect.isclass(value) or inspect.ismodule(value):
            return _name(value) + _source_mark(value)
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            return self._container(value, ordered=not isinstance(value, set | frozenset))
        if id(value) in self._number_of:
            return f"(object {self._number_of[id(value)]})"
        self._number_of[id(value)] = len(self._alive)
        self._alive.append(value)
        return self._object(value)

    def _container(self, value: Any, *, ordered: bool) -> Any:
        if id(value) in self._containers:
            return "(itself)"
        self._containers.add(id(value))
        if isinstance(value, Mapping):
            described: Any = {str(k): self.of(v) for k, v in value.items()}
            if ordered and list(described) != sorted(described):
                # Whoever writes this down sorts the keys.
                described = {"(in order)": [[k, v] for k, v in described.items()]}
        else:
            described = [self.of(v) for v in value]
            described = described if ordered else sorted(described, key=json.dumps)
        self._containers.remove(id(value))
        return described

    def _names(self, value: Mapping[str, Any]) -> Any:
        """Describe values by names whose order says nothing, such as attributes and keywords."""
        return self._container(value, ordered=False)

    def _lazy(self, value: Lazy) -> Any:
        # Of ours and of Avalanche's the name is all that is told: it need not be imported for that.
        if value.is_ours:
            return f"{former_module(value.module)}.{value.name}"
        return self.of(value.resolve())

    def _object(self, value: Any) -> Any:
        if is_dataclass(value):
            state = {f.name: self.of(getattr(value, f.name)) for f in fields(value)}
            return {"type": type(value).__qualname__, **state}
        if isinstance(value, functools.partial):
            parts = {"arguments": self.of(value.args), "keywords": self._names(value.keywords)}
            return {"partial": self.of(value.func), **parts}
        if inspect.ismethod(value):
            return {"method": value.__name__, "of": self.of(value.__self__)}
        if inspect.isfunction(value):
            return self._function(value)
        return self._instance(value)

    def _function(self, value: Any) -> Any:
        name = _name(value) + _source_mark(value)
        parts = {
            "defaults": value.__defaults__,
            "keyword_defaults": value.__kwdefaults__,
            "enclosed": inspect.getclosurevars(value).nonlocals,
        }
        held = {
            key: self._names(values) if isinstance(values, Mapping) else self.of(values)
            for key, values in parts.items()
            if values
        }
        return {"function": name, **held} if held and not _is_ours(value) else name

    def _instance(self, value: Any) -> Any:
        tells = repr(value) != object.__repr__(value)
        if not hasattr(value, "__dict__") or (_is_ours(type(value)) and tells):
            return _ADDRESS.sub("", repr(value))
        state = self._names(vars(value))
        text = json.dumps(state, sort_keys=True)
        if len(text) > _LONGEST_STATE:
            state = {"sha256": digest(text.encode())}
        return {"type": _name(type(value)) + _source_mark(type(value)), **state}


def _is_one_of(package: str, kind: str, value: Any) -> bool:
    """Whether a value is of this class; whoever has such a value has imported the package."""
    module = sys.modules.get(package)
    return module is not None and isinstance(value, getattr(module, kind))


def _number(value: Any) -> int | float | str:
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else repr(number)  # JSON has no infinity


def _array(value: Any) -> dict[str, Any]:
    if _is_one_of("torch", "Tensor", value):
        import torch

        # As bytes, because NumPy does not know bfloat16.
        array = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        array = value
    data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest(data)}


def _name(value: Any) -> str:
    if inspect.ismodule(value):
        return str(value.__name__)
    # In a worker process, what was defined in the main script comes from another module's name.
    module = "__main__" if value.__module__ == "__mp_main__" else value.__module__
    return f"{former_module(module)}.{value.__qualname__}"


def _is_ours(value: Any) -> bool:
    return bool(value.__module__.startswith(_OURS))


def _source_mark(value: Any) -> str:
    if inspect.ismodule(value) or _is_ours(value):
        return ""  # its version says enough
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return ""
    return "#" + digest(source.encode())[:10]
