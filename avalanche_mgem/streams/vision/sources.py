"""Data sets by name: where they lie in a data root, as torchvision keeps them or as NAME.npz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from avalanche_mgem.streams.npz import KEYS, read_npz

DEFAULT_ROOT = Path("data")

Parts = tuple[Tensor, Tensor, Tensor, Tensor]

# What torchvision raises for a failed download, and for files that are not what they say.
_FAILURES = (RuntimeError, OSError, AssertionError, LookupError, TypeError, ValueError)
_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class _Layout:
    """How torchvision keeps a data set: the class's name, and its files in a folder of the root."""

    dataset: str
    folder: str
    files: tuple[str, ...]
    parts: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
    channels_last: bool = False

    def missing(self, root: Path) -> Path | None:
        """Return the first file that is not there."""
        paths = [root / self.folder / name for name in self.files]
        return next((path for path in paths if not path.is_file()), None)

    def read(self, root: Path, download: bool) -> Parts:
        """Return uint8 images [N, C, H, W] and int64 labels, of training and test."""
        make = getattr(datasets, self.dataset)
        train, test = (make(str(root), download=download, **part) for part in self.parts)
        return (*self._tensors(train), *self._tensors(test))

    def _tensors(self, dataset: Any) -> tuple[Tensor, Tensor]:
        x = torch.as_tensor(dataset.data)
        if x.ndim == 3:
            x = x.unsqueeze(1)
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
        return x.contiguous(), torch.as_tensor(labels).long()


_LAYOUTS: dict[str, _Layout | None] = {
    "mnist": _Layout("MNIST", "MNIST/raw", _IDX_FILES),
    "fashion-mnist": _Layout("FashionMNIST", "FashionMNIST/raw", _IDX_FILES),
    "cifar10": _Layout(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        channels_last=True,
    ),
    "cifar100": _Layout(
        "CIFAR100", "cifar-100-python", ("train", "test", "meta"), channels_last=True
    ),
    "svhn": _Layout(
        "SVHN",
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        ({"split": "train"}, {"split": "test"}),
    ),
    "usps": _Layout("USPS", "", ("usps.bz2", "usps.t.bz2")),
    "mnist_m": None,  # torchvision has none
    "synthetic_digits": None,
}
FILE_SOURCES = tuple(_LAYOUTS)


def read_named(name: str, data_root: Path | str | None, download: bool) -> Parts:
    """x_train, y_train, x_test, y_test of one of FILE_SOURCES.

    Taken from torchvision's layout in data_root where it is complete, else from data_root/NAME.npz
    where that is, else downloaded, if it may be. data_root: None is the folder "data" in the
    current directory.

    Returns x as uint8 [N, C, H, W] (or what `read_npz` returns) and y as int64 [N]. Raises
    ValueError where the files are missing and not to be had, or cannot be read.
    """
    root = _root(data_root)
    require(name, data_root, download)
    file = npz_file(name, data_root)
    if file is not None:
        return read_npz(file)
    layout = _LAYOUTS[name]
    assert layout is not None  # else there is a file, or `require` has raised
    absent = layout.missing(root)
    try:
        return layout.read(root, download and absent is not None)
    except _FAILURES as error:
        absent = layout.missing(root)
        if absent is None:
            raise ValueError(_unreadable(root, layout, error)) from error
        reason = " ".join(str(error).split())
        why = f"and the download failed ({type(error).__name__}: {reason})"
        raise ValueError(_not_found(name, root, layout, absent, why)) from error


def require(name: str, data_root: Path | str | None, download: bool) -> None:
    """Raise ValueError, with what was looked for, where `name` is not there nor downloadable."""
    root, layout = _root(data_root), _LAYOUTS[name]
    if npz_file(name, data_root) is not None:
        return
    if layout is None:
        raise ValueError(
            f"data_root={str(root)!r} {_state(root, name)}: found no file {root / name}.npz, and "
            f"torchvision does not have it. Give the folder that holds {name}.npz as data_root; "
            f"the file holds {', '.join(KEYS)}"
        )
    absent = layout.missing(root)
    if absent is not None and not download:
        raise ValueError(_not_found(name, root, layout, absent, "and download=False"))


def npz_file(name: str, data_root: Path | str | None) -> Path | None:
    """Return the .npz file that `name` is read from, or None where it is not from one."""
    root, layout = _root(data_root), _LAYOUTS[name]
    if layout is not None and layout.missing(root) is None:
        return None
    file = root / f"{name}.npz"
    return file if file.is_file() else None


def _root(data_root: Path | str | None) -> Path:
    return DEFAULT_ROOT if data_root is None else Path(data_root)


def _state(root: Path, what: str) -> str:
    return f"has no {what}" if root.is_dir() else "does not exist"


def _not_found(name: str, root: Path, layout: _Layout, absent: Path, why: str) -> str:
    holds = layout.folder or " and ".join(layout.files)
    return (
        f"data_root={str(root)!r} {_state(root, layout.dataset)}: found no file {absent}, {why}. "
        f"Give the folder that holds {holds} (or {name}.npz, with {', '.join(KEYS)}) as data_root, "
        f"or get the files where there is a network, with download=True or "
        f"torchvision.datasets.{layout.dataset}({str(root)!r}, download=True)"
    )


def _unreadable(root: Path, layout: _Layout, error: Exception) -> str:
    return (
        f"data_root={str(root)!r}: the {layout.dataset} files in {root / layout.folder} cannot be "
        f"read ({type(error).__name__}: {error}). Remove them and get them with download=True"
    )
