"""The samples of a benchmark, which a checkpoint can leave out and find again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.places import class_name

_SMALL = 1024  # bytes; what is smaller is written
_OURS = f"{__name__.partition('.')[0]}."
_VALUES = frozenset({"data", "dataset", "datasets", "images", "inputs", "samples", "tensors", "x"})
_NAMES = _VALUES | {"indices", "labels", "targets", "y"}
_MOST = 1000  # of the items of a list
_BUDGET = 1 << 20  # bytes of an attribute of a data set
_WHOLE = 1 << 62  # bytes; nothing is left out


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
    """Tell parts of benchmarks apart: arrays by their values, data sets by what they are made of.

    That is their class, length, and of attributes with the usual names (targets, data, tensors and
    so on) evenly spaced values. No sample of a user's data set is read, which may draw from a
    generator of its own, and nothing else in it is looked at, which may change as it is used.
    """
    fingerprint = _Fingerprint()
    if isinstance(part, Dataset):
        fingerprint.add_data_set(part, _BUDGET)
    else:
        fingerprint.add(class_name(part), 0)
        fingerprint.add(part, part.nbytes)
    return fingerprint.digest.hexdigest()


def contents_digest(items: Iterable[Any]) -> str:
    """Tell items of data sets apart by all that they hold: numbers, arrays, tensors, texts."""
    fingerprint = _Fingerprint()
    for item in items:
        fingerprint.add(item, _WHOLE)
    return fingerprint.digest.hexdigest()


class _Fingerprint:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._inside: set[int] = set()  # data sets, which may hold themselves

    def add_data_set(self, part: Any, budget: int) -> None:
        if id(part) in self._inside:
            return
        self._inside.add(id(part))
        length = len(part) if hasattr(part, "__len__") else None
        self.add([class_name(part), length], 0)
        ours = type(part).__module__.startswith(_OURS)
        if ours and not hasattr(part, "dataset"):  # what wraps a user's draws what that draws
            self.add(part[length // 2] if length else None, budget)
            return
        for name, value in sorted(getattr(part, "__dict__", {}).items()):
            if name.lower() in _NAMES:
                self.add(name, 0)
                self.add(value, budget)

    def add(self, value: Any, budget: int) -> None:
        """Add a value; of arrays and long lists some, of about `budget` bytes."""
        if isinstance(value, torch.Tensor | np.ndarray):
            self._add_array(value, budget)
        elif isinstance(value, Dataset):
            self.add_data_set(value, budget)
        elif isinstance(value, dict):
            self.add(list(value.items()), budget)
        elif isinstance(value, list | tuple | range):
            some = value[:: -(-len(value) // _MOST) or 1]
            self.digest.update(f"{len(value)}[".encode())
            for each in some:
                self.add(each, budget // len(some))
        elif isinstance(value, str):  # files may lie in another folder where a run goes on
            self.digest.update(repr(value.replace("\\", "/").rsplit("/", 1)[-1]).encode())
        else:
            plain = isinstance(value, bytes | int | float | np.generic | type(None))
            self.digest.update((repr(value) if plain else class_name(value)).encode())

    def _add_array(self, value: Any, budget: int) -> None:
        self.digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                return
            value = value.detach()
        if value.ndim and len(value):
            rows = max(1, budget * len(value) // max(1, value.nbytes))
            value = value[:: -(-len(value) // rows)]
        if isinstance(value, torch.Tensor):
            value = value.cpu().contiguous().flatten().view(torch.uint8).numpy()
        if value.dtype.hasobject:  # its bytes are addresses
            self.add(value.ravel().tolist(), budget)
        else:
            self.digest.update(value.tobytes())
