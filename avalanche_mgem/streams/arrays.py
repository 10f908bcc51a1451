"""Where the samples come from: scikit-learn's digits, torchvision's, the user's own .npz files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from avalanche_mgem.arguments import bounded_int, flag, instance, real_tensor
from avalanche_mgem.streams.npz import read_npz
from avalanche_mgem.streams.places import FILE_SOURCES, check_source, source_file
from avalanche_mgem.streams.vision.images import resize_images, unit_range
from avalanche_mgem.streams.vision.sources import read_named


@dataclass(frozen=True, eq=False)
class ArrayData:
    """A classification data set in memory, split into training and test samples.

    x_train, x_test: [N, F], or [N, C, H, W] for images (channels first), as float32, or as uint8
    that stands for x / 255 at a quarter of the memory; streams hand out float32 of either. y_train,
    y_test: int64 [N], labels 0..n_classes-1, each of which y_train has at least once. Raises
    ValueError, naming the tensor, for anything else.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def __post_init__(self) -> None:
        instance("name", self.name, str, what="a text")
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

    def resized(self, image_size: int | None) -> ArrayData:
        """Return the data with square images of this size, bilinear with antialiasing.

        None: as it is. The dtype stays, so uint8 is rounded. Raises ValueError for samples that are
        not images and for a size that is no whole number >= 1.
        """
        if image_size is None:
            return self
        bounded_int("image_size", image_size)
        if len(self.sample_shape) != 3:
            raise ValueError(
                f"image_size={image_size} needs images [N, C, H, W], but the samples of "
                f"{self.name!r} have shape {self.sample_shape}"
            )
        x_train, x_test = (resize_images(x, image_size) for x in (self.x_train, self.x_test))
        return replace(self, x_train=x_train, x_test=x_test)


def require_data(data: object, *, argument: str = "data") -> ArrayData:
    """Return `data`, or raise ValueError: it must be an ArrayData."""
    found: ArrayData = instance(argument, data, ArrayData, what="an ArrayData, see load_data")
    return found


def load_data(
    source: str,
    *,
    data_root: Path | str | None = None,
    download: bool = True,
    keep_uint8: bool = False,
) -> ArrayData:
    """Load the data set that `source` names.

    source: "digits" (scikit-learn's, 1,797 images [1, 8, 8], nothing to download); "mnist",
    "fashion-mnist" (images [1, 28, 28]), "cifar10", "cifar100", "svhn" ([3, 32, 32]) or "usps" ([1,
    16, 16]), in torchvision's layout (for example ROOT/MNIST/raw) or as ROOT/NAME.npz, else
    downloaded; "mnist_m" or "synthetic_digits", as ROOT/NAME.npz only; or a path that ends in .npz,
    as given or else inside data_root; see `read_npz` for what such files must hold. data_root: the
    ROOT, also of downloads; None is the folder "data" in the current directory. download: whether
    anything may be downloaded. keep_uint8: leave pixels uint8, see `ArrayData`; as float32 in
    [0, 1], CIFAR's are 737 MB.

    Raises ValueError for a source that is unknown, missing or unreadable.
    """
    check_source(source, data_root, download)
    flag("keep_uint8", keep_uint8)
    if source == "digits":
        return _digits()
    path = source_file(source, data_root)
    if path is None:
        name, parts = source, read_named(source, data_root, download)
    else:
        name = source if source in FILE_SOURCES else path.stem
        parts = read_npz(path)
    x_train, y_train, x_test, y_test = parts
    if not keep_uint8:
        x_train, x_test = unit_range(x_train), unit_range(x_test)
    try:
        return ArrayData(name, x_train, y_train, x_test, y_test)
    except ValueError as error:
        raise ValueError(f"{path or source}: {error}") from error


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
    if real_tensor(name, x).dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"{name} must be float32 or uint8, got {x.dtype}")
    if x.ndim not in (2, 4) or x.numel() == 0:
        raise ValueError(
            f"{name} must have shape [N, F] or [N, C, H, W] without empty dimensions, "
            f"got {tuple(x.shape)}"
        )


def _check_labels(part: str, x: Tensor, y: Tensor) -> None:
    if real_tensor(f"y_{part}", y).dtype != torch.int64 or y.ndim != 1:
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
