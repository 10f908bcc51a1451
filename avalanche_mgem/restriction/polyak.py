"""The memory strength that Polyak's step size gives (ours): what the memory's own loss asks for.

With bounds gamma w on the dual variables, the rows push the gradient by gamma s, s = A'w. Where row
k is the gradient of a loss L_k, s is that of F = sum_k w_k L_k, and the push is a step on F of size
lr gamma. That is unstable where lr gamma exceeds 2 / curvature, and feeds itself: a jump of F makes
its gradient longer, and with it the push. Polyak's step size,

    gamma = factor * F / sum_i rate_i s_i^2     (of one learning rate: F / (lr ||s||^2))

is the one at which the linear model of F reaches zero (with factor 1) and no less. It is short
where the gradient is long, so that it does not feed itself. Its premise is that F can come near
zero: where s vanishes and F does not, the push F / ||s|| grows without bound. A `floor` is taken
off the loss, and a `maximum` limits gamma. Gamma is zero where F is not positive, or where nothing
that pushes moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_mgem.arguments import finite
from avalanche_mgem.restriction.block import runs
from avalanche_mgem.restriction.schedules import Schedule

# Rows may be almost zero beside a loss that is not.
_LARGEST = 1e18
# Positions that are widened to float64 at a time; elsewhere fewer launches count for more.
_RUN, _RUN_ELSEWHERE = 1 << 18, 1 << 24


@dataclass(frozen=True)
class PolyakStrength:
    """The memory strength gamma = factor * F / (lr ||s||^2), with F the loss on the memory.

    Args:
        factor: > 0; 1 is Polyak's step size.
        floor: the least that the loss on a task can be, which is taken off: 0 but for losses such
            as cross-entropy with label smoothing.
        maximum: None, or the most that gamma may be: a number >= 0 or a schedule, called as that of
            a memory strength.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> PolyakStrength(maximum=0.5)
        PolyakStrength(factor=1.0, maximum=0.5, floor=0.0)
    """

    factor: float = 1.0
    maximum: float | Schedule | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        finite("factor", self.factor, minimum=0.0, above=True)
        finite("floor", self.floor)
        if self.maximum is not None and not self._is_scheduled:
            finite("maximum", self.maximum, minimum=0.0)

    @property
    def _is_scheduled(self) -> bool:
        return callable(self.maximum) and not isinstance(self.maximum, type)

    def limit(self, *, experience: int, iteration: int) -> float:
        """Return the most that gamma may be at this moment; infinity where nothing limits it.

        Raises:
            ValueError: a schedule gives no finite number >= 0.
        """
        limit: object = self.maximum
        if limit is None:
            return math.inf
        if callable(self.maximum):
            limit = self.maximum(experience=experience, iteration=iteration)
        return finite("maximum", limit, minimum=0.0)


@dataclass(frozen=True)
class PolyakBounds:
    """Lower bounds gamma w of the dual variables, of which gamma is found with the rows.

    Args:
        weights: w, one number >= 0 a row, [K].
        loss: F = sum_k w_k L_k, of no dimension, on any device.
        rate: the learning rate, or that of each position, [P].
        factor: of gamma.
        maximum: the most that gamma may be.
    """

    weights: Tensor
    loss: Tensor
    rate: float | Tensor
    factor: float = 1.0
    maximum: float = math.inf

    def strength(self, loss: float, descent: float) -> float:
        """Return gamma for F and sum_i rate_i s_i^2; 0 where one of them is not positive.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError("the loss on the memory is not finite: no memory strength")
        if loss <= 0.0 or not descent > 0.0:
            return 0.0
        return min(self.factor * loss / descent, self.maximum, _LARGEST)

    def descents(self, rows: Tensor, columns: list[slice]) -> Tensor:
        """Return sum_i rate_i s_i^2 over these columns of the rows [K, P], in float64, [1]."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        length = _RUN if rows.device.type == "cpu" else _RUN_ELSEWHERE
        if dtype != rows.dtype:  # in half precision, and widened too
            length = max(1024, length // max(len(rows), 1))
        weights = self.weights.to(rows.device, dtype, non_blocking=True)
        total = rows.new_zeros(1, dtype=torch.float64)
        for run in (run for part in columns for run in runs(part, length)):
            direction = torch.mv(rows[:, run].to(dtype).T, weights).double()
            scaled = direction * (self.rate[run] if isinstance(self.rate, Tensor) else self.rate)
            total += torch.dot(scaled, direction)
        return total
