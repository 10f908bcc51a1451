"""Training images cropped and flipped at random; evaluations have them as they are."""

from __future__ import annotations

from typing import Any

from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from torch import Tensor
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip

from avalanche_mgem.streams.benchmarks import STREAMS, rebuilt
from avalanche_mgem.streams.places import LEAST_AUGMENTED
from avalanche_mgem.streams.scenario import task_aware
from avalanche_mgem.streams.validation import VALIDATION

_PADDED = 8  # a crop moves an image by up to this part of its size: 4 pixels of CIFAR's 32


def with_augmentation(scenario: Any) -> CLScenario:
    """Return a scenario whose training images are cropped and flipped at random as they are read.

    An image [C, H, W] is padded with zeros by an eighth of its larger side, rounded down, cropped
    to its size at random, and mirrored left to right in half of all cases: for CIFAR what He et al.
    do (arXiv 1512.03385). Draws are from torch's global random state. The evaluation's view of the
    training data, from which mGEM takes its memory, is what it was.

    scenario: a complete one, see `complete_scenario`; it stays what it is.

    Raises ValueError for samples that are no images of at least 16 x 16 pixels.
    """
    streams = [*STREAMS, *([VALIDATION] if hasattr(scenario, f"{VALIDATION}_stream") else [])]
    parts = {
        name: [
            (experience, experience.dataset) for experience in getattr(scenario, f"{name}_stream")
        ]
        for name in streams
    }
    parts["train"] = [(experience, _augmented(data)) for experience, data in parts["train"]]
    return rebuilt(parts)


def _augmented(data: Any) -> TaskAwareSupervisedClassificationDataset:
    sample = data.eval()[0][0]
    shape = tuple(sample.shape) if isinstance(sample, Tensor) else None
    if shape is None or len(shape) != 3 or min(shape[1:]) < LEAST_AUGMENTED:
        what = type(sample).__name__ if shape is None else f"shape {shape}"
        raise ValueError(
            f"augment needs images [C, H, W] of at least {LEAST_AUGMENTED} x {LEAST_AUGMENTED} "
            f"pixels, got samples of {what}"
        )
    crop = RandomCrop(shape[1:], padding=max(shape[1:]) // _PADDED)
    groups = TransformGroups({"train": Compose([crop, RandomHorizontalFlip()]), "eval": None})
    return task_aware(data, data.targets, data.targets_task_labels, transforms=groups)
