"""The step that an optimiser takes, measured, and taken again in another direction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avalanche_mgem.model.gradients import Parameters, positions


def step_rates(parameters: Parameters, optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the signed learning rate of each parameter: the step is -rate times the update.

    It is 0 for a parameter that the optimiser does not have, and negative for a group that
    maximises, whose steps go along the gradient.
    """
    rates = {
        id(p): float(group["lr"]) * (-1.0 if group.get("maximize") else 1.0)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    return [rates.get(id(p), 0.0) for p in parameters]


class StepRecorder:
    """Measures an optimiser's step as an update u = (before - after) / rate for each parameter.

    A restriction of the step s = -rate u is a restriction of u in the metric of the learning rates:
    with w a rate's size relative to the largest, <rate u, a> >= 0 is <sqrt(w) u, sqrt(w) a> >= 0.
    So updates are handed out times sqrt(w) and memory rows must be scaled by `metric`; with one
    learning rate all of this is multiplication by one.

    Attributes:
        metric: sqrt(w), one number a parameter.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of the remembered parameters."""
        self.metric: list[float] = []
        self._before: list[Tensor] = []
        self._rates: list[float] = []

    def start(self, parameters: Parameters, optimizer: torch.optim.Optimizer) -> None:
        """Remember where the parameters are; a copy of them is kept until the step."""
        self._before = [p.detach().clone() for p in parameters]
        self._rates = step_rates(parameters, optimizer)
        largest = max(map(abs, self._rates))
        self.metric = [math.sqrt(abs(r) / largest) if r != 0 else 1.0 for r in self._rates]

    def finish(self, parameters: Parameters) -> list[Tensor | None]:
        """Return sqrt(w) u for each parameter; None for those that the optimiser does not move."""
        moved = zip(parameters, self._before, self._rates, self.metric, strict=True)
        return [
            (_wide(before) - _wide(p.detach())) * (factor / rate)
            if rate != 0 and p.grad is not None
            else None
            for p, before, rate, factor in moved
        ]

    @torch.no_grad()
    def redo(self, parameters: Sequence[nn.Parameter], taken: Tensor, wanted: Tensor) -> None:
        """Take the update `wanted` in place of the one `taken` (both times sqrt(w), [P]).

        Where the two are the same, the parameters are not touched: not by rounding either.
        """
        everything = zip(
            parameters, positions(parameters), self._before, self._rates, self.metric, strict=True
        )
        for p, columns, before, rate, factor in everything:
            if rate != 0 and p.grad is not None:
                step = wanted[columns].view_as(p) * (rate / factor)
                differs = (wanted[columns] != taken[columns]).view_as(p)
                p.copy_(torch.where(differs, (_wide(before) - step).to(p.dtype), p))

    @torch.no_grad()
    def undo(self, parameters: Parameters) -> None:
        """Put the parameters back where they were before the step."""
        for p, before in zip(parameters, self._before, strict=True):
            p.copy_(before)


def _wide(value: Tensor) -> Tensor:
    """At least float32: a difference of two half-precision numbers is mostly rounding."""
    return value if value.dtype == torch.float64 else value.float()
