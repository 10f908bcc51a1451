"""Pixels: uint8 as values in [0, 1], other sizes, grey as RGB."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

_CHUNK = 2048  # images that are float32 at a time


def unit_range(x: Tensor) -> Tensor:
    """Return float32 as it is, and uint8 as float32 x / 255."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def resize_images(x: Tensor, image_size: int) -> Tensor:
    """Resize images [N, C, H, W] to [N, C, image_size, image_size], bilinear with antialiasing.

    The dtype stays: uint8 is computed in float32 and rounded, the same on every machine.
    """
    if tuple(x.shape[2:]) == (image_size, image_size):
        return x
    resized = torch.empty(*x.shape[:2], image_size, image_size, dtype=x.dtype)
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = resize(
            x[part].float(), [image_size] * 2, InterpolationMode.BILINEAR, antialias=True
        )
        # Assigning float to uint8 cuts off.
        resized[part] = values.round_().clamp_(0, 255) if x.dtype == torch.uint8 else values
    return resized


def as_rgb(x: Tensor) -> Tensor:
    """Repeat the one channel of grey images; [N, 1 or 3, H, W] becomes [N, 3, H, W]."""
    return x.expand(-1, 3, -1, -1)
