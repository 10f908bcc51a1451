"""A step of the optimisers in which some parameters stay, and others go a part of the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from avalanche_mgem.model.optimizers import moves_by_gradient_alone
from avalanche_mgem.model.step_hold import StepHold, hold_rows
from avalanche_mgem.model.step_scale import StepScale


class ShapedStep:
    """Begun before the step and ended after it; a copy or a pickle is of no step."""

    def __init__(self) -> None:
        self._hold: StepHold | None = None  # of optimisers that may move what is frozen
        self._scale = StepScale()

    def __getstate__(self) -> dict[str, object]:
        return vars(ShapedStep())

    def begin(
        self,
        optimizers: Sequence[Any],
        frozen: Sequence[nn.Parameter],
        scaled: Sequence[tuple[nn.Parameter, float]],
    ) -> None:
        """Remember what is needed.

        Args:
            optimizers: that take the step.
            frozen: parameters that stay; they have no gradient, and need nothing where optimisers
                move parameters by their gradient alone.
            scaled: others, each with the part of the step that it goes.
        """
        self.drop()
        if frozen and not all(map(moves_by_gradient_alone, optimizers)):
            self._hold = hold_rows(optimizers, (), {}, still=frozen, copy=True)
        self._scale.start(scaled)

    def end(self) -> None:
        """Put back what has moved and was to stay, and shorten the others' steps."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.end()
        self._scale.finish()

    def drop(self) -> None:
        """Let go of a step that an error has ended."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.remove()
        self._scale.forget()
