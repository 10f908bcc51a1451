"""Streams whose images are corrupted: noise, blur, low contrast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.model.randomness import RandomStream
from avalanche_mgem.streams.scenario import Pool, Samples, make_scenario
from avalanche_mgem.streams.vision.corruption_names import Corruption, parse_corruptions
from avalanche_mgem.streams.vision.images import unit_range

_NOISE_A_LEVEL = 0.06
_BLUR_A_LEVEL = 0.4
_CONTRAST_A_LEVEL = 0.16

_CHUNK = 1024  # images that are float32 at a time
_NOISE = 5  # what the generators are for, after those of `Draw`
_READING = 6
_OUTSIDE = 1e-4  # how far rounding may carry a pixel out of [0, 1]

Key = tuple[int, int, int]


def corrupted(
    stream: CLScenario, corruption: str | Sequence[str] = "noise", *, seed: int = 0
) -> CLScenario:
    """Return the stream with its images corrupted, those of training and of test alike.

    As Corrupted Split CUB-200 (arXiv 2602.20796), whose corruption the paper does not tell beyond
    "image noise"; what is done here is ours. corruption: a `Corruption` as text; several, as a list
    or with commas, are dealt to the experiences in turn: "noise:3,blur,none" gives experience 0
    noise of level 3, experience 1 blur, experience 2 nothing, experience 3 noise. seed: of the
    noise, which each sample of each experience has of its own, the same at every reading.

    The images are corrupted once and stored as uint8, a byte a value: 184 MB for CIFAR-100. A
    sample that several experiences have is stored in each. Where the stream has transforms of its
    own, their result is what is stored; what they draw at random they draw from `seed`. The global
    random state is neither read nor moved.

    Raises ValueError for unknown corruptions and levels, a seed that is not an integer >= 0, and a
    stream without images [C, H, W] of one size an experience with values in [0, 1], or whose
    experience i has other task labels than 0, or than i.
    """
    if not (hasattr(stream, "train_stream") and hasattr(stream, "test_stream")):
        raise ValueError(f"stream must be a scenario of Avalanche's, got {stream!r}")
    positive_int("seed", seed, minimum=0)
    dealt = parse_corruptions(corruption)
    task_labels = _has_task_labels(stream)
    train, test = (
        [
            _stored(experience.dataset, dealt[i % len(dealt)], (seed, i, part))
            for i, experience in enumerate(experiences)
        ]
        for part, experiences in enumerate((stream.train_stream, stream.test_stream))
    )
    return make_scenario(train, test, task_labels)


def _has_task_labels(stream: CLScenario) -> bool:
    labels = [
        (i, label)
        for experiences in (stream.train_stream, stream.test_stream)
        for i, experience in enumerate(experiences)
        for label in set(getattr(experience.dataset, "targets_task_labels", [0]))
    ]
    if all(label == 0 for _, label in labels):
        return False
    if any(label != i for i, label in labels):
        raise ValueError(
            "stream must have the task label 0 everywhere, or i in experience i, got "
            f"{sorted({label for _, label in labels})[:10]}"
        )
    return True


def _stored(dataset: Any, corruption: Corruption, key: Key) -> Samples:
    cpu = torch.device("cpu")
    reading = RandomStream(int(np.random.default_rng([*key, 0, _READING]).integers(2**32)))
    with reading.active(cpu):
        shape = tuple(getattr(dataset[0][0], "shape", ()))
    images = torch.empty(len(dataset), *shape, dtype=torch.uint8)
    for start in range(0, len(dataset), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(dataset)))
        with reading.active(cpu):
            samples = [dataset[row][0] for row in rows]
        clean = _images(samples, shape, key[1])
        generators = (np.random.default_rng([*key, row, _NOISE]) for row in rows)
        images[rows.start : rows.stop] = applied(corruption, clean, generators).mul(255).round()
    labels = torch.tensor([int(label) for label in dataset.targets])
    return Samples(Pool(images, labels), np.arange(len(dataset)))


def applied(
    corruption: Corruption, images: Tensor, generators: Iterable[np.random.Generator]
) -> Tensor:
    """Return the images, float32 [N, C, H, W], corrupted; generators: one an image."""
    if corruption.kind == "noise":
        images = images + _NOISE_A_LEVEL * corruption.level * _noise(images, generators)
    elif corruption.kind == "blur":
        images = _blurred(images, _BLUR_A_LEVEL * corruption.level)
    elif corruption.kind == "contrast":
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (1 - _CONTRAST_A_LEVEL * corruption.level) * (images - mean)
    return images.clamp(0, 1)


def _images(samples: list[Any], shape: tuple[int, ...], experience: int) -> Tensor:
    if len(shape) != 3 or any(tuple(each.shape) != shape for each in samples):
        raise ValueError(
            "stream must hold images [C, H, W] to be corrupted, of one size an experience, but "
            f"experience {experience} has samples of shape {shape}"
        )
    images = unit_range(torch.stack(samples))
    low, high = images.aminmax()
    if not (low >= -_OUTSIDE and high <= 1 + _OUTSIDE):
        raise ValueError(
            "stream must hold images with values in [0, 1] to be corrupted, but those of "
            f"experience {experience} go from {low:g} to {high:g}"
        )
    return images


def _noise(images: Tensor, generators: Iterable[np.random.Generator]) -> Tensor:
    shape = tuple(images.shape[1:])
    drawn = [each.standard_normal(shape, dtype=np.float32) for each in generators]
    return torch.from_numpy(np.stack(drawn))


def _blurred(images: Tensor, deviation: float) -> Tensor:
    if deviation == 0:
        return images
    # Three deviations hold all but a thousandth; a border is mirrored, so at most to the far side.
    reach = math.ceil(3 * deviation)
    for axis, length in enumerate((images.shape[3], images.shape[2])):
        # One axis after the other: the same blur for 2 * n products a pixel instead of n * n.
        kernel = [1, 1]
        kernel[axis] = 2 * min(reach, length - 1) + 1
        images = gaussian_blur(images, kernel, [deviation, deviation])
    return images
