"""Random numbers that leave everybody else's alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


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


class RandomStream:
    """A torch random state of its own, for code that draws from the global one.

    Inside `active(device)` the global state of the CPU and of that device is this stream's; on the
    way out it is what it was, and the stream remembers where it stopped. It pickles and
    deep-copies.

    Args:
        seed: where the stream starts, on every device.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: dict[str, Tensor] = {}

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """Draw from this stream instead of the global state."""
        devices = [torch.device("cpu")] + ([device] if device.type == "cuda" else [])
        outside = [_get_state(d) for d in devices]
        for d in devices:
            _set_state(d, self._states.get(str(d), self._fresh_state(d)))
        try:
            yield
        finally:
            for d, state in zip(devices, outside, strict=True):
                self._states[str(d)] = _get_state(d)
                _set_state(d, state)

    def _fresh_state(self, device: torch.device) -> Tensor:
        return torch.Generator(device).manual_seed(self._seed).get_state()


def _get_state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
