"""Data sets as folders of image files, one folder a class."""

from __future__ import annotations

import hashlib
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from avalanche_mgem.arguments import as_path, bounded_int, finite, positive_int
from avalanche_mgem.files import file_digest
from avalanche_mgem.streams.arrays import ArrayData
from avalanche_mgem.streams.drawing import Draw, Indices, generator
from avalanche_mgem.streams.places import locate_folder
from avalanche_mgem.streams.vision.image_files import (
    ClassFolders,
    Files,
    class_folders,
    image_files,
    part_folders,
)
from avalanche_mgem.streams.vision.images import resize_images

_OF_ONE_SIZE = (".bmp", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff")  # whatever the pixels are


def load_image_folder(
    folder: Path | str, image_size: int = 64, *, test_share: float = 0.2, seed: int = 0
) -> ArrayData:
    """Load the images below a folder, as torchvision's ImageFolder finds them.

    folder: has one folder a class (such as CUB-200's "images"), or has "train" and "test" (or other
    usual names, see `part_folders`), both with the same classes. What is hidden is left out.
    Classes are numbered in the sorted order of their names. All images become RGB, grey ones too,
    and [3, image_size, image_size]: stretched to a square, as `ArrayData.resized` does. Without
    "train" and "test", test_share of each class's images, at least one and not all, are drawn for
    test from `seed`.

    Grey images of 16 or 32 bits and of floats are scaled to 8 bits by the range of all such images
    of the data set, training and test: integers without negative ones so that the largest number of
    as many bits as the largest of them has is white (4095 for 12-bit scans), others from their
    smallest (black) to their largest (white). Of 16-bit colours Pillow reads the upper 8 bits.
    What is transparent is white.

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
    deep = {"I": _DeepImages(), "F": _DeepImages()}
    x_train, y_train = _decoded(train, image_size, deep)
    x_test, y_test = _decoded(test, image_size, deep)
    for images in deep.values():
        images.finish()
    return ArrayData(root.resolve().name, x_train, y_train, x_test, y_test)


def folder_digest(folder: Path | str) -> str:
    """Return a digest of the names and sizes of the folder's images.

    Of formats that need not compress, and so keep their size when pixels change, the contents count
    as well.
    """
    root = as_path("folder", folder)
    hasher = hashlib.sha256()
    for path in sorted(image_files(root)):
        line = f"{path.relative_to(root).as_posix()} {path.stat().st_size}"
        if path.suffix.lower() in _OF_ONE_SIZE:
            line = f"{line} {file_digest(path)}"
        hasher.update(f"{line}\n".encode())
    return hasher.hexdigest()[:16]


def _files(root: Path, test_share: float, seed: int) -> tuple[Files, Files]:
    """The paths and classes of the images for training, and of those for test."""
    locate_folder(root)
    parts = part_folders(root)
    if parts is None:
        return _divided(class_folders(root), test_share, seed)
    train, test = map(class_folders, parts)
    differ = sorted(set(train.classes) ^ set(test.classes))
    if differ:
        raise ValueError(
            f"{train.folder} and {test.folder} must have the same classes, but only one of them "
            f"has {', '.join(differ[:10])}"
        )
    return train.files, test.files


def _divided(found: ClassFolders, test_share: float, seed: int) -> tuple[Files, Files]:
    labels: Indices = np.asarray([label for _, label in found.files], dtype=np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(found.classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise ValueError(
                f"{found.folder / name} has one image, but needs one for training and one for test"
            )
        count = min(max(1, round(test_share * len(members))), len(members) - 1)
        in_test[generator(seed, Draw.TEST, label).permutation(members)[:count]] = True
    both = [
        [file for file, chosen in zip(found.files, in_test, strict=True) if chosen == wanted]
        for wanted in (False, True)
    ]
    return both[0], both[1]


class _DeepImages:
    """Images of more than 8 bits, which wait until the range of all of them is known."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor]] = []  # where they go, and their values
        self._low, self._high = float("inf"), float("-inf")
        self._whole = True

    def add(self, place: Tensor, pixels: Tensor) -> None:
        """Note an image, float32 or int32 [1, H, W], that belongs to uint8 [3, S, S]."""
        values = pixels.float()
        low, high = (bound.item() for bound in pixels.aminmax())  # float32 would round 2**31 - 1
        if not (isfinite(low) and isfinite(high)):
            raise ValueError("it holds NaN or infinite values")
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._whole &= not pixels.is_floating_point()
        self._waiting.append((place, resize_images(values.unsqueeze(0), place.shape[-1])[0]))

    def finish(self) -> None:
        """Put all images where they belong, from black to white."""
        black, white = self._low, self._high
        if self._whole and black >= 0:
            black, white = 0.0, 2.0 ** int(max(white, 0)).bit_length() - 1
        for place, values in self._waiting:
            shares = (values - black) / max(white - black, torch.finfo(torch.float32).tiny)
            place.copy_((255 * shares).round_().clamp_(0, 255))


def _decoded(files: Files, image_size: int, deep: dict[str, _DeepImages]) -> tuple[Tensor, Tensor]:
    """Read images; those of more than 8 bits are left to `deep`, by their kind."""
    images = torch.empty(len(files), 3, image_size, image_size, dtype=torch.uint8)
    for row, (path, _) in enumerate(files):
        try:
            with Image.open(path) as image:
                kind = image.mode[0]  # "I;16", "I;16B", "I"; "F"
                if kind in deep:
                    numbers = np.asarray(image).astype(np.float32 if kind == "F" else np.int32)
                    deep[kind].add(images[row], torch.from_numpy(numbers).unsqueeze(0))
                else:
                    images[row] = resize_images(_rgb(image).unsqueeze(0), image_size)[0]
        except Exception as error:  # decoders raise all kinds of errors at what is broken
            raise ValueError(
                f"{path} cannot be read as an image ({type(error).__name__}: {error})"
            ) from error
    return images, torch.tensor([label for _, label in files], dtype=torch.int64)


def _rgb(image: Image.Image) -> Tensor:
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        # Files have any colour where nothing shows: black lines may lie on transparent black.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels
