"""A Trainer's collate function, called besides training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

Collate = Callable[[Any], Any]


class UnmovedCollate:
    """A collate function whose own random numbers are, after each call, as before it.

    Such as those of DataCollatorForLanguageModeling(seed=...), which has none before its first
    call. The global random states are the caller's to look after.
    """

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> Any:
        """Return the batch."""
        with _unmoved(self._collate):
            return self._collate(samples)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the function has."""
        if name.startswith("__") or name == "_collate":
            raise AttributeError(name)
        return getattr(self._collate, name)


@contextmanager
def _unmoved(collate: Collate) -> Iterator[None]:
    states = [
        (own, name, _state(value))
        for own in _attributes(collate, set())
        for name, value in own.items()
    ]
    try:
        yield
    finally:
        for own, name, state in states:
            if state is not None:
                _restore(own[name], state)
            elif _state(own.get(name)) is not None:
                own[name] = None  # made in this call


def _attributes(collate: Any, seen: set[int]) -> Iterator[dict[str, Any]]:
    """The attributes of a function, and of those that it calls, as the Trainer's own calls ours."""
    own = getattr(collate, "__dict__", None)
    known = id(collate) in seen or isinstance(collate, type | nn.Module)
    if isinstance(own, dict) and not known:
        seen.add(id(collate))
        yield own
        for value in filter(callable, [*own.values()]):
            yield from _attributes(value, seen)


def _state(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    return value.getstate() if isinstance(value, random.Random) else None


def _restore(value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    else:
        value.setstate(state)


class OwnLoader:
    """A data loader as it is, but for its collate function, which leaves no trace."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.collate_fn = UnmovedCollate(loader.collate_fn)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the loader has."""
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)
