"""The samples of a benchmark, which a checkpoint can leave out and find again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.places import class_name
from avalanche_mgem.checkpoint.random_states import random_states, restore_random_states

_SMALL = 1024  # bytes; what is smaller is written


def holds_samples(part: Any) -> bool:
    """Whether an object is a data set (as torch has them), or a large array or tensor."""
    if isinstance(part, np.ndarray | torch.Tensor):
        return part.nbytes >= _SMALL and not (isinstance(part, np.ndarray) and part.dtype.hasobject)
    return isinstance(part, Dataset)


class Samples:
    """The data sets, arrays and tensors that a benchmark is made of, by their order in it."""

    def __init__(self, parts: Iterable[Any] | None) -> None:
        self._given = parts is not None
        self._parts = list(parts or ())
        self._numbers = {id(part): number for number, part in enumerate(self._parts)}

    def number(self, part: Any) -> int | None:
        """Which part of the benchmark an object is; None if it is none."""
        return self._numbers.get(id(part))

    def find(self, number: int, fingerprint: str) -> Any:
        """Return a part.

        Raises:
            CheckpointError: it is another one than it was, or no benchmark was given.
        """
        if not self._given:
            raise CheckpointError(
                "benchmark: the checkpoint was saved without the samples of its benchmark; pass "
                "the same benchmark to load_checkpoint"
            )
        part = self._parts[number] if number < len(self._parts) else None
        if part is None or fingerprint_of(part) != fingerprint:
            raise CheckpointError(
                "benchmark: its samples are not those of the benchmark that the checkpoint was "
                "saved with; make it with the same seed and arguments"
            )
        return part


def fingerprint_of(part: Any) -> str:
    """Tell parts of benchmarks apart: arrays by their values, data sets by length and one sample.

    Samples are read with all global random states as they always are here, and leave no trace.
    """
    digest = hashlib.sha256(class_name(part).encode())
    if not isinstance(part, Dataset):
        _add(digest, part)
        return digest.hexdigest()
    length = len(part)  # type: ignore[arg-type]  # Avalanche's benchmarks need one
    _add(digest, length)
    states = random_states()
    try:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        _add(digest, part[length // 2] if length else None)
    finally:
        restore_random_states(states)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"{value.shape}{value.dtype}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        _add(digest, list(value.items()))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            _add(digest, each)
    elif hasattr(value, "tobytes"):  # images of PIL, and NumPy's numbers
        digest.update(value.tobytes())
    else:
        plain = isinstance(value, str | bytes | int | float | type(None))
        digest.update((repr(value) if plain else class_name(value)).encode())
