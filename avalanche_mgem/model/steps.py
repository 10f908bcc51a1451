"""The step that an optimiser takes, measured, and taken again in another direction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avalanche_mgem.model.gradients import Parameters, positions


class StepRecorder:
    """Measures an optimiser's step as an update u = (before - after) / lr for each parameter.

    A restriction of the step s = -lr u is a restriction of u in the metric of the learning rates:
    with w the learning rate relative to the largest, <lr u, a> >= 0 is <sqrt(w) u, sqrt(w) a> >= 0.
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
        rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
        self._before = [p.detach().clone() for p in parameters]
        self._rates = [rates.get(id(p), 0.0) for p in parameters]
        largest = max(self._rates)
        self.metric = [math.sqrt(rate / largest) if rate > 0 else 1.0 for rate in self._rates]

    def finish(self, parameters: Parameters) -> list[Tensor | None]:
        """Return sqrt(w) u for each parameter; None for those that the optimiser does not move."""
        moved = zip(parameters, self._before, self._rates, self.metric, strict=True)
        return [
            (before - p.detach()) * (factor / rate) if rate > 0 and p.grad is not None else None
            for p, before, rate, factor in moved
        ]

    @torch.no_grad()
    def redo(self, parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
        """Put the parameters where the update `vector` (times sqrt(w), [P]) takes them."""
        everything = zip(
            parameters, positions(parameters), self._before, self._rates, self.metric, strict=True
        )
        for p, columns, before, rate, factor in everything:
            if rate > 0 and p.grad is not None:
                step = vector[columns].view_as(p) * (rate / factor)
                p.copy_(before - step)
