"""How strongly the memory pushes: a number, a schedule, or what the loss on the memory asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import finite
from avalanche_mgem.bridge.memory import MemoryGroup
from avalanche_mgem.bridge.optimizers import optimizers_of
from avalanche_mgem.bridge.rows import MemoryRows
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.steps import step_rates
from avalanche_mgem.restriction import (
    ConstantSchedule,
    PolyakStrength,
    Schedule,
)
from avalanche_mgem.restriction.polyak import PolyakBounds

Given = float | str | Schedule | PolyakStrength


def as_strength(memory_strength: Given) -> Schedule | PolyakStrength:
    """Return what an argument `memory_strength` stands for.

    Raises:
        ValueError: it is no finite number >= 0, "auto", schedule or PolyakStrength.
    """
    if isinstance(memory_strength, PolyakStrength):
        return memory_strength
    if isinstance(memory_strength, str):
        if memory_strength == "auto":
            return PolyakStrength()
        raise ValueError(
            f"memory_strength must be a finite number >= 0 or 'auto', got {memory_strength!r}"
        )
    if callable(memory_strength) and not isinstance(memory_strength, type):
        return memory_strength
    return ConstantSchedule(finite("memory_strength", memory_strength, minimum=0.0))


class Bounds:
    """The lower bounds of the dual variables, in one iteration.

    Args:
        strength: gamma, or how it is found.
        groups: of the memory, a row each.
        per_task: whether gamma is divided among the groups of a task, each by its share.
        experience: 0-based, of the run.
        iteration: 0-based, of the run.

    Attributes:
        weights: of the rows, w; the bounds are gamma w. Empty: there is nothing to restrict with.

    Raises:
        ValueError: a schedule gives no finite number >= 0.
    """

    def __init__(
        self,
        strength: Schedule | PolyakStrength,
        groups: Sequence[MemoryGroup],
        *,
        per_task: bool,
        experience: int,
        iteration: int,
    ) -> None:
        self.weights = [group.share if per_task else 1.0 for group in groups]
        self._polyak = strength if isinstance(strength, PolyakStrength) else None
        if isinstance(strength, PolyakStrength):
            self._strength = strength.limit(experience=experience, iteration=iteration)
        else:
            given = strength(experience=experience, iteration=iteration)
            self._strength = finite("memory_strength", given, minimum=0.0)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def needs_rate(self) -> bool:
        """Whether gamma depends on the learning rate and on the loss."""
        return self._polyak is not None

    def at(self, rows: MemoryRows, rate: float | Tensor) -> Tensor | PolyakBounds:
        """Return the bounds, as `project` takes them.

        Args:
            rows: as they were filled last, with the loss on the memory.
            rate: the learning rate, or that of each position, [P].
        """
        if self._polyak is None:
            return torch.tensor([self._strength * weight for weight in self.weights])
        weights = torch.tensor(self.weights)
        loss = rows.loss(weights) - self._polyak.floor * sum(self.weights)
        return PolyakBounds(weights, loss, rate, self._polyak.factor, self._strength)


NO_BOUNDS = Bounds(ConstantSchedule(0.0), [], per_task=True, experience=0, iteration=0)


def rates_of_gradient(
    strategy: Strategy, parameters: Sequence[nn.Parameter], device: torch.device
) -> float | Tensor:
    """Return what plain SGD's step is of the gradient: one number, or one a position, [P]."""
    rates = [rate.value for rate in step_rates(parameters, optimizers_of(strategy))]
    if len(set(rates)) == 1:
        return rates[0]
    sized = zip(parameters, rates, strict=True)
    return torch.cat([torch.full((p.numel(),), rate, device=device) for p, rate in sized])


def require_polyak(strategy: Strategy, strength: PolyakStrength, *, of: str) -> None:
    """Raise ValueError where Polyak's step size is not defined, or its premise is known to fail.

    of: what is restricted, "gradient" or "update".
    """
    smoothing = getattr(getattr(strategy, "_criterion", None), "label_smoothing", 0.0)
    if smoothing and strength.floor == 0.0 and strength.maximum is None:
        raise ValueError(
            "memory_strength='auto' takes the loss on the memory to come near zero, and with "
            f"label_smoothing={smoothing} it cannot: give PolyakStrength(floor=...), the least "
            "that the loss can be, or PolyakStrength(maximum=...)"
        )
    for optimizer in optimizers_of(strategy):
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError(
                "memory_strength='auto' (PolyakStrength) is of a loss that steps make smaller, and "
                f"{type(optimizer).__name__} has maximize=True"
            )
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        known = all(rate.is_known for rate in step_rates(held, [optimizer]))
        if of == "gradient" and not known:
            raise ValueError(
                "memory_strength='auto' (PolyakStrength) under restrict='gradient' needs an "
                f"optimizer with a learning rate, and {type(optimizer).__name__} finds the size of "
                "its steps itself: take restrict='update', or a number"
            )
