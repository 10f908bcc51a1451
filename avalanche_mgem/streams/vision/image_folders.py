"""Data sets as folders of image files, one folder a class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader
from torchvision.transforms.functional import pil_to_tensor

from avalanche_mgem.arguments import as_path, bounded_int, finite, positive_int
from avalanche_mgem.files import file_digest
from avalanche_mgem.streams.arrays import ArrayData
from avalanche_mgem.streams.drawing import Draw, Indices, generator
from avalanche_mgem.streams.places import locate_folder
from avalanche_mgem.streams.vision.images import resize_images

_PARTS = ("train", "test")
_OF_ONE_SIZE = (".bmp", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff")  # whatever the pixels are
_PART_LIKE = {"train", "training", "test", "testing", "val", "valid", "validation"}

Files = Sequence[tuple[str, int]]


def load_image_folder(
    folder: Path | str, image_size: int = 64, *, test_share: float = 0.2, seed: int = 0
) -> ArrayData:
    """Load the images below a folder, as torchvision's ImageFolder finds them.

    folder: has one folder a class (such as CUB-200's "images"), or has "train" and "test", both
    with the same classes. Classes are numbered in the sorted order of their names. All images
    become RGB, grey ones too, and [3, image_size, image_size]: stretched to a square, as
    `ArrayData.resized` does. Without "train" and "test", test_share of each class's images, at
    least one and not all, are drawn for test from `seed`.

    Returns uint8 pixels. All are in memory at once, 3 * image_size**2 bytes an image: 145 MB for
    CUB-200's 11,788 at 64, 1.8 GB at 224. Each call decodes every file, a few milliseconds each; a
    data set that is read often is better saved as .npz, see `load_data`.

    Raises ValueError, naming the path, for a folder that is not there, has no classes, or one
    without images, for classes that differ between training and test, and for files that cannot be
    read; for an image_size that is no whole number >= 1, and a test_share not between 0 and 1.
    """
    root = as_path("folder", folder)
    bounded_int("image_size", image_size)
    positive_int("seed", seed, minimum=0)
    if not 0 < finite("test_share", test_share) < 1:
        raise ValueError(f"test_share must be above 0 and below 1, got {test_share!r}")
    train, test = _files(root, test_share, seed)
    x_train, y_train = _decoded(train, image_size)
    x_test, y_test = _decoded(test, image_size)
    return ArrayData(root.resolve().name, x_train, y_train, x_test, y_test)


def folder_digest(folder: Path | str) -> str:
    """Return a digest of the names and sizes of the folder's images.

    Of formats that need not compress, and so keep their size when pixels change, the contents count
    as well.
    """
    root = as_path("folder", folder)
    hasher = hashlib.sha256()
    # Links are followed, as ImageFolder does.
    below = (Path(at) / name for at, _, names in os.walk(root, followlinks=True) for name in names)
    for path in sorted(below):
        if path.suffix.lower() in IMG_EXTENSIONS:
            line = f"{path.relative_to(root).as_posix()} {path.stat().st_size}"
            if path.suffix.lower() in _OF_ONE_SIZE:
                line = f"{line} {file_digest(path)}"
            hasher.update(f"{line}\n".encode())
    return hasher.hexdigest()[:16]


def _files(root: Path, test_share: float, seed: int) -> tuple[Files, Files]:
    """The paths and classes of the images for training, and of those for test."""
    locate_folder(root)
    folders = {each.name for each in root.iterdir() if each.is_dir()}
    if all((root / part).is_dir() for part in _PARTS):
        train, test = (_found(root / part) for part in _PARTS)
        differ = sorted(set(train.classes) ^ set(test.classes))
        if differ:
            raise ValueError(
                f"{root / 'train'} and {root / 'test'} must have the same classes, but only one "
                f"of them has {', '.join(differ[:10])}"
            )
        return train.samples, test.samples
    if folders and folders <= _PART_LIKE:
        raise ValueError(
            f"{root} must have both 'train' and 'test', or one folder a class, "
            f"got {', '.join(sorted(folders))}"
        )
    return _divided(_found(root), test_share, seed)


def _found(folder: Path) -> Any:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} must have one folder a class, each with images: {error}"
        ) from error


def _divided(dataset: Any, test_share: float, seed: int) -> tuple[Files, Files]:
    labels: Indices = np.asarray(dataset.targets, dtype=np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(
                f"{Path(dataset.root) / name} has one image, but needs one for training and one "
                "for test"
            )
        count = min(max(1, round(test_share * len(members))), len(members) - 1)
        in_test[generator(seed, Draw.TEST, label).permutation(members)[:count]] = True
    both = [
        [file for file, chosen in zip(dataset.samples, in_test, strict=True) if chosen == wanted]
        for wanted in (False, True)
    ]
    return both[0], both[1]


def _decoded(files: Files, image_size: int) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(files), 3, image_size, image_size, dtype=torch.uint8)
    for row, (path, _) in enumerate(files):
        images[row] = resize_images(_read(path).unsqueeze(0), image_size)[0]
    return images, torch.tensor([label for _, label in files], dtype=torch.int64)


def _read(path: str) -> Tensor:
    try:
        pixels: Tensor = pil_to_tensor(pil_loader(path))
    except Exception as error:  # decoders raise all kinds of errors at what is broken
        raise ValueError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error})"
        ) from error
    return pixels
