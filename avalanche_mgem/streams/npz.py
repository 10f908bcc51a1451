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

_LAYOUTS = "[N, F], [N, H, W], [N, H, W, C] or [N, C, H, W]"
_COLOURS = (1, 3)  # channels of grey images and of RGB
_RGBA = 4
_LARGEST = 10.0  # root mean square; standardised values have 1, pixels in [0, 1] less
_BROKEN = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Array = NDArray[np.generic]


def read_npz(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_train, y_train, x_test, y_test of the .npz file at `path`; other keys are ignored.

    The file holds x as uint8 or as finite floats, of shape [N, F], [N, H, W], [N, H, W, C] or
    [N, C, H, W]; which of the last two, its shape tells, see `channel_axis`. It holds y as integers
    of shape [N] or [N, 1].

    Float images must be scaled, to about [0, 1] or [-1, 1]: their root mean square is at most 10.
    Vectors may have any scale, unless they are pixels 0..255 (whole numbers) as floats. uint8
    stands for x / 255, so values that are 0 and 1 alone are refused as uint8.

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
        raise ValueError(f"{key} must be uint8 or float, got dtype {array.dtype}{_advice(array)}")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(f"{key} must have shape {_LAYOUTS} and not be empty, got {array.shape}")
    if array.dtype == np.uint8:
        values = torch.from_numpy(np.ascontiguousarray(array))
        if (int(values.min()), int(values.max())) == (0, 1):
            raise ValueError(
                f"{key} is uint8, which stands for x / 255, but holds 0 and 1 alone: store it as "
                "float32, or 1 as 255"
            )
    else:
        with np.errstate(over="ignore"):
            values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        _check_scale(key, values)
    return _channels_first(key, values)


def _advice(array: Array) -> str:
    """Say how samples of a dtype that is not taken become some that are."""
    if array.dtype.kind not in "iu" or array.size == 0:
        return ": store x.astype(numpy.float32)" if array.dtype.kind == "b" else ""
    low, high = int(array.min()), int(array.max())
    if low >= 0 and high <= 255:
        return f" of {low} to {high}: store pixels as x.astype(numpy.uint8)"
    divisor = f" / {2 ** high.bit_length() - 1}" if low >= 0 else ", scaled to about [-1, 1]"
    return f" of {low} to {high}: store x.astype(numpy.float32){divisor}"


def _check_scale(key: str, values: Tensor) -> None:
    """Raise ValueError for floats that are not finite, and for images that are not scaled."""
    low, high = (float(bound) for bound in values.aminmax())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{key} must be finite as float32, but holds NaN or infinite values")
    mean_square = float(torch.linalg.vector_norm(values)) ** 2 / values.numel()
    if max(-low, high) <= _LARGEST or mean_square <= _LARGEST**2:
        return
    are_pixels = low >= 0 and high <= 255 and bool((values == values.round()).all())
    if values.ndim == 2 and not are_pixels:
        return
    if low < 0 or high > 65535:
        scaled = "subtract their mean and divide by their standard deviation"
    elif high > 255:
        scaled = f"divide them by the largest possible, such as {2 ** int(high).bit_length() - 1}"
    else:
        scaled = "divide them by 255, or store them as uint8"
    raise ValueError(
        f"{key} holds floats from {low:g} to {high:g}, on which training diverges: pixels as "
        f"floats must be scaled to about [0, 1] or [-1, 1]; {scaled}"
    )


def channel_axis(shape: Sequence[int]) -> int:
    """Return which axis of images [N, A, B, C] is that of the channels: 1 or 3.

    The one of 1 or 3, where the other is neither; else the one that leaves square images; else the
    one of 4 (RGBA); else the last. Raises ValueError, with both readings, where it can be either.
    """
    _, first, middle, last = shape
    if first in _COLOURS and last in _COLOURS:
        raise ValueError(_both_readings(shape))
    if first in _COLOURS or last in _COLOURS:
        return 1 if first in _COLOURS else 3
    if (first == middle) != (middle == last):
        return 3 if first == middle else 1
    if (first == _RGBA) != (last == _RGBA):
        return 1 if first == _RGBA else 3
    if first == last or first < min(middle, last):
        raise ValueError(_both_readings(shape))
    return 3


def _both_readings(shape: Sequence[int]) -> str:
    _, first, middle, last = shape
    return (
        f"has shape {tuple(shape)}, which can be [N, H, W, C] ({last} of {first} x "
        f"{middle} pixels) or [N, C, H, W] ({first} of {middle} x {last}): store grey images as "
        "[N, H, W], or pad others so that one of the two axes alone is 1 or 3"
    )


def _channels_first(key: str, values: Tensor) -> Tensor:
    if values.ndim == 3:
        return values.unsqueeze(1)
    if values.ndim == 4:
        try:
            axis = channel_axis(values.shape)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from error
        return values.movedim(axis, 1).contiguous()
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
