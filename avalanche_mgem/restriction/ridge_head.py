"""A classification head in closed form, behind which gradients of different tasks compare.

The gradient of a body behind a new head is that of the head's random weights. Behind the head that
ridge least squares fits to the features at hand it says what the task asks of the body: on pairs of
related and unrelated tasks its cosine tells them apart where that behind the new head does not
(ours; the update-magnitude paper, arXiv 2602.20796, leaves open which head it is).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from avalanche_mgem.arguments import finite, real_tensor

RIDGE = 0.1
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class RidgeHead:
    """logits [N, C] = (features [N, D] - mean) weight.

    Args:
        mean: of the features that it was fitted to, [D].
        weight: with the scale of the logits in it, [D, C].
        classes: the targets that the columns stand for, ascending, [C].
    """

    mean: Tensor
    weight: Tensor
    classes: Tensor

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of features [N, D] and targets [N]; it differentiates.

        Raises:
            ValueError: a target that the head was not fitted to.
        """
        columns = torch.searchsorted(self.classes, targets).clamp(max=len(self.classes) - 1)
        if not torch.equal(self.classes[columns], targets):
            raise ValueError("targets: some are of classes that the head was not fitted to")
        logits = (features.to(self.weight.dtype) - self.mean) @ self.weight
        return functional.cross_entropy(logits, columns)

    def to(self, device: torch.device) -> RidgeHead:
        """Return the head on a device."""
        return RidgeHead(*(t.to(device) for t in (self.mean, self.weight, self.classes)))


def fit_ridge_head(features: Tensor, targets: Tensor, *, ridge: float = RIDGE) -> RidgeHead:
    """Fit a head to features z [N, D] and integer targets [N] by ridge least squares.

    With z and the one-hot codes y [N, C] of the targets' classes both centred, the weight is
    s (z'z + r I)^-1 z'y, where r is `ridge` times the mean eigenvalue of z'z, and s the one of 1,
    2, 4, 8 and 16 whose logits have the least mean cross-entropy on these samples. It is computed
    in float64, over the smaller of z'z and zz', and returned in float32, or in float64 where z is.
    Features that are all the same give a weight of zero; those that are not finite, or too large
    for their squares, give NaN.

        head = fit_ridge_head(torch.randn(400, 64), torch.randint(5, (400,)))
        head.weight  # [64, 5]

    Raises:
        ValueError: shapes or dtypes that do not fit, no samples, a ridge that is not > 0.
    """
    _check(features, targets)
    finite("ridge", ridge, minimum=0.0, above=True)
    classes, columns = torch.unique(targets, return_inverse=True)
    z = features.detach().double()
    mean = z.mean(0)
    z = z - mean
    codes = functional.one_hot(columns, len(classes)).double()
    codes -= codes.mean(0)
    wide = torch.promote_types(features.dtype, torch.float32)
    weight = _least_squares(z, codes, ridge)
    losses = torch.stack([functional.cross_entropy(s * (z @ weight), columns) for s in SCALES])
    weight = SCALES[int(losses.argmin())] * weight
    return RidgeHead(mean.to(wide), weight.to(wide), classes)


def _least_squares(z: Tensor, codes: Tensor, ridge: float) -> Tensor:
    samples, width = z.shape
    penalty = ridge * z.square().sum() / width
    if not bool(penalty.isfinite()):
        return z.new_full((width, codes.shape[1]), torch.nan)
    if penalty == 0:
        return z.new_zeros(width, codes.shape[1])
    gram, right = (z.T @ z, z.T @ codes) if width <= samples else (z @ z.T, codes)
    solved: Tensor = torch.linalg.solve(gram + penalty * torch.eye(*gram.shape).to(gram), right)
    return solved if width <= samples else z.T @ solved


def _check(features: Tensor, targets: Tensor) -> None:
    if not real_tensor("features", features, shape="[N, D]").is_floating_point():
        raise ValueError(f"features must be of a floating dtype, got {features.dtype}")
    if real_tensor("targets", targets, shape="[N]").is_floating_point():
        raise ValueError(f"targets must be integers, got {targets.dtype}")
    if not features.numel() or len(targets) != len(features):
        raise ValueError(
            "features and targets must be of one number of samples, at least one, got "
            f"{tuple(features.shape)} and {tuple(targets.shape)}"
        )
