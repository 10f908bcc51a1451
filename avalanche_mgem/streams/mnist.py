"""Reading MNIST through torchvision."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torchvision import datasets

DEFAULT_ROOT = Path("data")

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# What torchvision raises for a failed download, and for files that are not what they say.
_FAILURES = (RuntimeError, OSError, AssertionError, LookupError, TypeError, ValueError)


def read_mnist(
    data_root: Path | str | None, download: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_train, y_train, x_test, y_test of MNIST, as torchvision keeps it: ROOT/MNIST/raw.

    data_root: ROOT; None is the folder "data" in the current directory. download: whether
    torchvision may download what is missing into it.

    Returns x float32 [N, 1, 28, 28] in [0, 1] and y int64 [N]. Raises ValueError where the files
    are missing and not to be had, or cannot be read.
    """
    root = DEFAULT_ROOT if data_root is None else Path(data_root)
    missing = _first_missing(root)
    if missing is not None and not download:
        raise ValueError(_not_found(root, missing, "and download=False"))
    try:
        train, test = (
            datasets.MNIST(str(root), train=part, download=download) for part in (True, False)
        )
    except _FAILURES as error:
        missing = _first_missing(root)
        if missing is None:
            raise ValueError(_unreadable(root, error)) from error
        reason = " ".join(str(error).split())
        why = f"and the download failed ({type(error).__name__}: {reason})"
        raise ValueError(_not_found(root, missing, why)) from error
    return (*_tensors(train), *_tensors(test))


def _first_missing(root: Path) -> Path | None:
    paths = [root / "MNIST" / "raw" / name for name in _FILES]
    return next((path for path in paths if not path.is_file()), None)


def _not_found(root: Path, missing: Path, why: str) -> str:
    state = "has no MNIST" if root.is_dir() else "does not exist"
    return (
        f"data_root={str(root)!r} {state}: found no file {missing}, {why}. Give the folder that "
        f"holds MNIST/raw as data_root, or get the files where there is a network, with "
        f"download=True or torchvision.datasets.MNIST({str(root)!r}, download=True)"
    )


def _unreadable(root: Path, error: Exception) -> str:
    return (
        f"data_root={str(root)!r}: the MNIST files in {root / 'MNIST' / 'raw'} cannot be read "
        f"({type(error).__name__}: {error}). Remove them and get them with download=True"
    )


def _tensors(dataset: datasets.MNIST) -> tuple[Tensor, Tensor]:
    return dataset.data.unsqueeze(1).float() / 255, dataset.targets.long()
