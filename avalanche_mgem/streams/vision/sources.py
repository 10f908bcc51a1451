"""Reading the data sets that have a name, as torchvision keeps them or from NAME.npz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from avalanche_mgem.streams.npz import read_npz
from avalanche_mgem.streams.places import LAYOUTS, Layout, not_found, npz_file, require, root_of

Parts = tuple[Tensor, Tensor, Tensor, Tensor]

# What torchvision raises for a failed download, and for files that are not what they say.
_FAILURES = (RuntimeError, OSError, AssertionError, LookupError, TypeError, ValueError)


def read_named(name: str, data_root: Path | str | None, download: bool) -> Parts:
    """x_train, y_train, x_test, y_test of one of FILE_SOURCES.

    Taken from torchvision's layout in data_root where it is complete, else from data_root/NAME.npz
    where that is, else downloaded, if it may be. data_root: None is the folder "data" in the
    current directory.

    Returns x as uint8 [N, C, H, W] (or what `read_npz` returns) and y as int64 [N]. Raises
    ValueError where the files are missing and not to be had, or cannot be read.
    """
    root = root_of(data_root)
    require(name, data_root, download)
    file = npz_file(name, data_root)
    if file is not None:
        return read_npz(file)
    layout = LAYOUTS[name]
    assert layout is not None  # else there is a file, or `require` has raised
    absent = layout.missing(root)
    try:
        return _read(layout, root, download and absent is not None)
    except _FAILURES as error:
        absent = layout.missing(root)
        if absent is None:
            raise ValueError(_unreadable(root, layout, error)) from error
        reason = " ".join(str(error).split())
        why = f"and the download failed ({type(error).__name__}: {reason})"
        raise ValueError(not_found(name, root, layout, absent, why)) from error


def _read(layout: Layout, root: Path, download: bool) -> Parts:
    """Return uint8 images [N, C, H, W] and int64 labels, of training and test."""
    make = getattr(datasets, layout.dataset)
    train, test = (make(str(root), download=download, **part) for part in layout.parts)
    return (*_tensors(layout, train), *_tensors(layout, test))


def _tensors(layout: Layout, dataset: Any) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(dataset.data)
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if layout.channels_last:
        x = x.permute(0, 3, 1, 2)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return x.contiguous(), torch.as_tensor(labels).long()


def _unreadable(root: Path, layout: Layout, error: Exception) -> str:
    return (
        f"data_root={str(root)!r}: the {layout.dataset} files in {root / layout.folder} cannot be "
        f"read ({type(error).__name__}: {error}). Remove them and get them with download=True"
    )
