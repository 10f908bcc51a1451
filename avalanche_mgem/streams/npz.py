"""Reading data sets from NumPy's .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from avalanche_mgem.streams.places import KEYS

_LAYOUTS = "[N, F], [N, H, W] or [N, H, W, C]"
_BROKEN = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Array = NDArray[np.generic]


def read_npz(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_train, y_train, x_test, y_test of the .npz file at `path`; other keys are ignored.

    The file holds x as uint8 or as finite floats, of shape [N, F], [N, H, W] or [N, H, W, C]. It
    holds y as integers of shape [N] or [N, 1].

    Returns x as uint8, as it is, or float32, [N, F] or [N, C, H, W], and y as int64 [N]: 0..C-1, in
    the sorted order of the labels in the file. Raises ValueError, naming the file and the key,
    where they do not fit.
    """
    arrays = _load(path)
    try:
        x_train, x_test = (_samples(key, arrays[key]) for key in ("x_train", "x_test"))
        y_train, y_test = _numbered(*(_labels(key, arrays[key]) for key in ("y_train", "y_test")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return x_train, y_train, x_test, y_test


def read_classes(path: Path) -> list[int]:
    """Return the labels of the .npz file's y_train as the file has them, sorted, each once."""
    return sorted(set(_labels("y_train", _load(path, ("y_train",))["y_train"])))


def _load(path: Path, keys: Sequence[str] = KEYS) -> dict[str, Array]:
    if not path.is_file():
        raise ValueError(f"source must be an .npz file that exists, found none at {path}")
    try:
        arrays, names = _read(path, keys)
    except _BROKEN as error:
        raise ValueError(f"source must be a readable .npz file, {path} is not: {error}") from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        shown = ", ".join([*names[:10], "..."] if len(names) > 10 else names)
        raise ValueError(
            f"{path} must have the keys {', '.join(KEYS)}; it lacks {', '.join(missing)} "
            f"and has {shown or 'none'}"
        )
    return arrays


def _read(path: Path, keys: Sequence[str]) -> tuple[dict[str, Array], list[str]]:
    # Opened here, because np.load leaves the file open where the archive turns out broken.
    with path.open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        if not isinstance(stored, NpzFile):
            raise ValueError("it is a single array (.npy)")
        arrays = {key: np.asarray(stored[key]) for key in keys if key in stored.files}
        return arrays, sorted(stored.files)


def _samples(key: str, array: Array) -> Tensor:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"{key} must be uint8 or float, got dtype {array.dtype}")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(f"{key} must have shape {_LAYOUTS} and not be empty, got {array.shape}")
    if array.dtype == np.uint8:
        return _channels_first(torch.from_numpy(np.ascontiguousarray(array)))
    with np.errstate(over="ignore"):
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{key} must be finite as float32, but holds NaN or infinite values")
    return _channels_first(values)


def _channels_first(values: Tensor) -> Tensor:
    if values.ndim == 3:
        return values.unsqueeze(1)
    if values.ndim == 4:
        return values.permute(0, 3, 1, 2).contiguous()
    return values


def _labels(key: str, array: Array) -> list[int]:
    if array.dtype.kind not in "iu":
        raise ValueError(f"{key} must be integers, got dtype {array.dtype}")
    if (array.ndim != 1 and array.shape[1:] != (1,)) or array.size == 0:
        raise ValueError(f"{key} must have shape [N] or [N, 1] and not be empty, got {array.shape}")
    labels: list[int] = array.reshape(-1).tolist()
    return labels


def _numbered(y_train: list[int], y_test: list[int]) -> tuple[Tensor, Tensor]:
    number = {label: position for position, label in enumerate(sorted(set(y_train)))}
    unseen = sorted(set(y_test).difference(number))
    if unseen:
        raise ValueError(f"y_test has labels that y_train does not have: {unseen[:10]}")
    return (
        torch.tensor([number[label] for label in y_train], dtype=torch.int64),
        torch.tensor([number[label] for label in y_test], dtype=torch.int64),
    )
