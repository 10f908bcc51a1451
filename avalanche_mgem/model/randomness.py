"""Random numbers that leave everybody else's alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def fingerprint(device: torch.device) -> bytes:
    """Return what changes as soon as somebody draws from a global random state."""
    sources = ["python", "numpy", "cpu"] + ([str(device)] if device.type == "cuda" else [])
    states = [_get_state(source) for source in sources]
    return pickle.dumps([s.tolist() if isinstance(s, torch.Tensor) else s for s in states])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the global random states of Python, numpy and torch (all devices) back on the way out."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def unmoved_torch_states(device: torch.device) -> Iterator[list[str]]:
    """Put torch's random states back on the way out; yield a list, then of those that had moved.

    For code that hardly ever draws: what it drew came from the global states.
    """
    sources = ["cpu"] + ([str(device)] if device.type == "cuda" else [])
    before = {source: _get_state(source) for source in sources}
    moved: list[str] = []
    try:
        yield moved
    finally:
        for source, state in before.items():
            if not torch.equal(_get_state(source), state):
                _set_state(source, state)
                moved.append(source)


class RandomStream:
    """Random states of its own, for code that draws from the global ones.

    Inside `active(device)` the global states of Python, numpy, torch's CPU and that device are this
    stream's; on the way out they are what they were, and the stream remembers where it stopped. It
    pickles and deep-copies.

    Args:
        seed: where the stream starts, on every device.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: dict[str, Any] = {}

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Draw from this stream instead of the global states."""
        sources = ["python", "numpy", "cpu"] + ([str(device)] if device.type == "cuda" else [])
        outside = {source: _get_state(source) for source in sources}
        for source in sources:
            if source not in self._states:
                self._states[source] = _fresh_state(source, self._seed)
            _set_state(source, self._states[source])
        try:
            yield
        finally:
            for source in sources:
                self._states[source] = _get_state(source)
                _set_state(source, outside[source])

    def state(self) -> dict[str, Any]:
        """Return where it stands, of Python's own types and tensors."""
        states = dict(self._states)
        if "numpy" in states:
            kind, keys, *rest = states["numpy"]
            states["numpy"] = (kind, [int(key) for key in keys], *rest)
        return {"seed": self._seed, "states": states}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where a `state` was returned."""
        self._seed, self._states = state["seed"], dict(state["states"])


def _fresh_state(source: str, seed: int) -> Any:
    if source == "python":
        return random.Random(seed).getstate()
    if source == "numpy":
        return np.random.RandomState(seed).get_state()
    return torch.Generator(source).manual_seed(seed).get_state()


def _get_state(source: str) -> Any:
    if source == "python":
        return random.getstate()
    if source == "numpy":
        return np.random.get_state()
    return torch.get_rng_state() if source == "cpu" else torch.cuda.get_rng_state(source)


def _set_state(source: str, state: Any) -> None:
    if source == "python":
        random.setstate(state)
    elif source == "numpy":
        np.random.set_state(state)
    elif source == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, source)
