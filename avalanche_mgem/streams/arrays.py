"""Where the samples come from: scikit-learn's digits, MNIST, and the user's own .npz files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from avalanche_mgem.streams.mnist import read_mnist
from avalanche_mgem.streams.npz import read_npz

NAMED_SOURCES = ("digits", "mnist")


@dataclass(frozen=True, eq=False)
class ArrayData:
    """A classification data set in memory, split into training and test samples.

    x_train, x_test: float32 [N, F], or [N, C, H, W] for images (channels first). y_train, y_test:
    int64 [N], labels 0..n_classes-1, each of which y_train has at least once. Raises ValueError,
    naming the tensor, for anything else.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            _check_samples(f"x_{part}", getattr(self, f"x_{part}"))
            _check_labels(part, getattr(self, f"x_{part}"), getattr(self, f"y_{part}"))
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"x_train and x_test must have samples of one shape, got {self.sample_shape} "
                f"and {tuple(self.x_test.shape[1:])}"
            )
        _check_classes(self.y_train, self.y_test)

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return int(self.y_train.max()) + 1

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (F,) or (C, H, W)."""
        return tuple(self.x_train.shape[1:])


def load_data(
    source: str, *, data_root: Path | str | None = None, download: bool = True
) -> ArrayData:
    """Load the data set that `source` names.

    source: "digits" (scikit-learn's, 1,797 images [1, 8, 8], nothing to download), "mnist" (images
    [1, 28, 28]) or a path that ends in .npz, as given or else inside data_root; see `read_npz` for
    what the file must hold. data_root: where MNIST lies or is downloaded to, in torchvision's
    layout ROOT/MNIST/raw; None is the folder "data" in the current directory. download: whether
    MNIST may be downloaded.

    Raises ValueError for a source that is unknown, missing or unreadable.
    """
    if source == "digits":
        return _digits()
    if source == "mnist":
        return ArrayData("mnist", *read_mnist(data_root, download))
    if not source.endswith(".npz"):
        raise ValueError(_unknown_source(source))
    path = _locate(source, data_root)
    tensors = read_npz(path)
    try:
        return ArrayData(path.stem, *tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unknown_source(source: str) -> str:
    near = difflib.get_close_matches(source, NAMED_SOURCES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"source must be 'digits', 'mnist' or a path that ends in .npz, got {source!r}{hint}"


def _locate(source: str, data_root: Path | str | None) -> Path:
    path = Path(source)
    if data_root is None or path.is_file():
        return path
    inside = Path(data_root) / path
    if not inside.is_file():
        raise ValueError(f"source={source!r} was found neither at {path} nor at {inside}")
    return inside


def _digits() -> ArrayData:
    images, targets = load_digits(return_X_y=True)
    labels = np.asarray(targets, dtype=np.int64)
    x = torch.from_numpy(np.asarray(images, dtype=np.float32)).reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels)
    generator = np.random.default_rng(0)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = generator.permutation(np.flatnonzero(labels == label))
        in_test[torch.from_numpy(members[: len(members) // 4])] = True
    return ArrayData("digits", x[~in_test], y[~in_test], x[in_test], y[in_test])


def _check_samples(name: str, x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"{name} must be float32, got {x.dtype}")
    if x.ndim not in (2, 4) or x.numel() == 0:
        raise ValueError(
            f"{name} must have shape [N, F] or [N, C, H, W] without empty dimensions, "
            f"got {tuple(x.shape)}"
        )


def _check_labels(part: str, x: Tensor, y: Tensor) -> None:
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"y_{part} must be int64 [N], got {y.dtype} {tuple(y.shape)}")
    if len(x) != len(y):
        raise ValueError(
            f"x_{part} and y_{part} must have one length, got {len(x)} samples and {len(y)} labels"
        )


def _check_classes(y_train: Tensor, y_test: Tensor) -> None:
    present: list[int] = np.unique(y_train.numpy()).tolist()
    if present != list(range(len(present))):
        raise ValueError(f"y_train must hold every label from 0 to its largest, got {present[:20]}")
    unseen = sorted(set(y_test.tolist()).difference(present))
    if unseen:
        raise ValueError(f"y_test has labels that y_train does not have: {unseen[:10]}")
