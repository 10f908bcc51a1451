"""What a gate holds through a step of the optimiser, and what it hides from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_mgem.model.optimizers import moves_by_gradient_alone
from avalanche_mgem.model.step_hold import StepHold, hold_rows
from avalanche_mgem.model.units import GatedLayer

Parameters = Iterable[tuple[str, nn.Parameter]]


class GateHold:
    """Holds rows, and parameters as a whole, through a step; a copy or a pickle holds nothing.

        hold.hide(ungated)                              # after the backward pass
        hold.begin(optimizers, layers, kept, ungated)
        optimizer.step()
        hold.end()
        hold.unhide()

    Rows are held where the optimiser's update is masked; parameters where they are frozen whole.
    """

    def __init__(self) -> None:
        self._hooks_are_enough = False  # to hold rows: seen in a step of this experience
        self._hold: StepHold | None = None
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_hold": None, "_hidden": []}

    def reset(self) -> None:
        """Begin an experience."""
        self.drop()
        self._hooks_are_enough, self._hidden = False, []

    def hide(self, parameters: Parameters) -> None:
        """Take these parameters' gradients away: no optimiser touches what has none."""
        for _, parameter in parameters:
            if parameter.grad is not None:
                self._hidden.append((parameter, parameter.grad))
                parameter.grad = None

    def begin(
        self,
        optimizers: tuple[Any, ...],
        layers: list[GatedLayer],
        kept: Mapping[str, Tensor],
        still: Parameters,
    ) -> None:
        """Until `end`, let no step move the rows that are not kept, nor parameters that are still.

        layers: whose rows are held; none: only what is still is.
        """
        self.drop()
        hides = not all(map(moves_by_gradient_alone, optimizers))
        whole = [parameter for _, parameter in still if parameter.requires_grad] if hides else []
        if hides and self._hidden:
            # A step in two parts, as SAM's, expects a gradient in the first where there is one
            # in the second; what moves by one of zeros is put back.
            self._hidden = [(each, _zeroed(each, known)) for each, known in self._hidden]
        if layers or whole:
            copy = not self._hooks_are_enough
            self._hold = hold_rows(optimizers, layers, kept, still=whole, copy=copy)

    def end(self) -> None:
        """End what `begin` began, after the step: what has moved all the same is put back."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self._hooks_are_enough = hold.end()

    def drop(self) -> None:
        """End what `begin` began, after an error or without a step: nothing is put back."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.remove()

    def unhide(self) -> None:
        """Give back the gradients that were hidden, where there is none.

        Avalanche's synaptic intelligence reads the gradient of everything that requires one.
        """
        hidden, self._hidden = self._hidden, []
        for parameter, gradient in hidden:
            if parameter.grad is None or not parameter.grad.any():
                parameter.grad = gradient

    def forget(self) -> None:
        """End the step: hidden gradients are those of former parameters by now."""
        self._hidden = []


def _zeroed(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Put zeros for a gradient that was taken away, and return that."""
    parameter.grad = torch.zeros_like(gradient)
    return gradient
