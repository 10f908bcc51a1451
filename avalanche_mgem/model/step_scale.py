"""A part of an optimiser's step: parameters go that part of the way, whatever the optimiser."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class StepScale:
    """Shortens steps: theta_before + factor * (theta_after - theta_before).

    Momentum, weight decay and what an optimiser divides by are part of the step, and are scaled
    with it; its state is not. Between `start` and `finish` it takes a copy of the parameters.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Parameter, Tensor, float]] = []

    def start(self, parameters: Iterable[tuple[nn.Parameter, float]]) -> None:
        """Remember where parameters are, each with the part of its step that is to be taken."""
        self._before = [(p, p.detach().clone(), factor) for p, factor in parameters]

    @torch.no_grad()
    def finish(self) -> None:
        """Shorten the step; a parameter that has not moved is not touched."""
        for parameter, before, factor in self._before:
            if not torch.equal(before, parameter):
                parameter.copy_(torch.lerp(before, parameter, factor))
        self.forget()

    def __getstate__(self) -> dict[str, object]:
        return vars(StepScale())

    def forget(self) -> None:
        """Let go of what is remembered."""
        self._before = []
