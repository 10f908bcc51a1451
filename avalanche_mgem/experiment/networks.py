"""The parts that models are made of: convolution bodies and output heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn
from torch.nn import functional

_GROWING_START = 2  # Avalanche's
_GROUPS = 8  # of group normalisation


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a batch of one value a channel too.

    Such a batch, the last of an experience or a memory of one pattern at 1 x 1 pixels, has no
    variance, and torch refuses it in training: it is normalised by the running statistics, which
    stay as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, H, W] over all but C."""
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (arXiv 1512.03385, figure 5, left)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(width_in, width_out, stride),
            nn.ReLU(),
            *convolution(width_out, width_out, 1),
        )
        same = stride == 1 and width_in == width_out
        self.shortcut = nn.Sequential(
            *([] if same else convolution(width_in, width_out, stride, kernel=1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, width_out, H / stride, W / stride] of [N, width_in, H, W]."""
        return functional.relu(self.body(x) + self.shortcut(x))


class MultiHeadNetwork(MultiTaskModule):
    """Shared features and a head for each task label."""

    def __init__(self, features: nn.Module, classifier: MultiHeadClassifier) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Tensor | dict[int, Tensor]:
        """Return the outputs of each sample's head [N, C]; for None those of all heads, by task."""
        # Features of the whole batch at once, not task by task: batch norm sees the batch.
        outputs: Tensor | dict[int, Tensor] = self.classifier(self.features(x), task_labels)
        return outputs

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return the outputs of one task's head [N, C]."""
        outputs: Tensor = self.classifier(self.features(x), task_label)
        return outputs


def convolution(
    width_in: int, width_out: int, stride: int, kernel: int = 3, norm: str = "batch"
) -> list[nn.Module]:
    """Return a convolution, padded to keep the size at stride 1, and its normalisation.

    norm: "batch", "group" (of 8 groups, or as many as divide the width) or "none" (a bias instead).
    """
    bias = norm == "none"
    conv = nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2, bias=bias)
    if norm == "batch":
        return [conv, BatchNorm(width_out)]
    return [conv] if bias else [conv, nn.GroupNorm(math.gcd(_GROUPS, width_out), width_out)]


def slim_resnet18_body(channels: int, width: int) -> list[nn.Module]:
    """Return the layers of GEM's reduced ResNet-18: images [N, channels, H, W] to [N, 8 * width].

    A ResNet-18 (arXiv 1512.03385) for small images, as GEM (arXiv 1706.08840, section 5.1) reduces
    it: fewer feature maps, and a 3x3 stem of stride 1 without pooling.
    """
    layers = [*convolution(channels, width, 1), nn.ReLU()]
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    for stage, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(BasicBlock(width_in, width_out, 1 if stage == 0 else 2))
        layers.append(BasicBlock(width_out, width_out, 1))
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def cnn_body(channels_in: int, channels: Sequence[int], norm: str = "batch") -> list[nn.Module]:
    """Return 3x3 convolutions of stride 2, each with norm and ReLU, then average pooling.

    Images [N, channels_in, H, W] become [N, channels[-1]]. With five layers, images of 32 x 32
    pixels or fewer have shrunk to 1 x 1 before the pooling, which then does nothing.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise([channels_in, *channels]):
        layers += [*convolution(width_in, width_out, 2, norm=norm), nn.ReLU()]
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def with_head(body: Sequence[nn.Module], n_features: int, n_classes: int, heads: str) -> nn.Module:
    """Put an output head on the layers of a body whose outputs are [N, n_features].

    heads: "single", a Linear of n_classes outputs. "growing", Avalanche's IncrementalClassifier,
    which adds outputs as classes come and masks those not yet seen; n_classes is only its bound.
    "multi", Avalanche's MultiHeadClassifier, n_classes outputs for every task label, those of no
    class masked: heads of one size let a batch mix tasks, as replay does.
    """
    if heads == "multi":
        classifier = MultiHeadClassifier(n_features, initial_out_features=n_classes)
        return MultiHeadNetwork(nn.Sequential(*body), classifier)
    if heads == "growing":
        start = min(_GROWING_START, n_classes)
        return nn.Sequential(*body, IncrementalClassifier(n_features, start))
    return nn.Sequential(*body, nn.Linear(n_features, n_classes))
