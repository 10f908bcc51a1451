"""Models made for a stream's samples and classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

ModelFactory = Callable[[tuple[int, ...], int], nn.Module]


class MLPFactory:
    """Makes multi-layer perceptrons: flattened input, hidden layers with ReLU, linear output.

    Called with the shape of a sample and the number of classes.

    Args:
        hidden: widths of the hidden layers; (100, 100) is GEM's for MNIST.
    """

    def __init__(self, hidden: Sequence[int] = (100, 100)) -> None:
        self.hidden = tuple(hidden)

    def __call__(self, sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """Return a new perceptron, initialised from torch's global random state."""
        widths = [math.prod(sample_shape), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))

    def __repr__(self) -> str:
        return f"MLPFactory(hidden={self.hidden})"
