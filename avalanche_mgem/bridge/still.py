"""What other plugins hold still in a step.

A restriction of the gradient must know it: a solution that counts on what will not move leaves the
cone as soon as that part of it is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from avalanche_mgem.bridge.strategy import Strategy

Of = Literal["gradient", "update"]


@dataclass
class Still:
    """What a step holds still, in the model's parameters by their names.

    Args:
        parameters: that do not move at all.
        rows: (name, dims, held): the slices of a parameter at those positions along its dimensions
            `dims`, ascending, at which held, bool of their sizes, is True do not move. They are
            rows along (0,) of a linear layer's weight, and along (0, 1) of experts' weights
            [experts, rows, in].
    """

    parameters: list[str] = field(default_factory=list)
    rows: list[tuple[str, tuple[int, ...], Tensor]] = field(default_factory=list)


@runtime_checkable
class HoldsStill(Protocol):
    """A plugin that holds parameters or rows of them still."""

    def held_still(self, strategy: Strategy, *, of: Of) -> Still:
        """Return what it holds still in this step, from the backward pass on.

        of: "gradient": what the plugin makes zero in the gradient. "update": what does not move
        whatever the optimiser makes of its gradient.
        """


def held_still(strategy: Strategy, *, of: Of) -> Still:
    """Return what all plugins of the strategy hold still."""
    all_of_them = Still()
    for plugin in strategy.plugins:
        # What isinstance of the protocol asks, sooner.
        if callable(hold := getattr(plugin, "held_still", None)):
            still = hold(strategy, of=of)
            all_of_them.parameters += still.parameters
            all_of_them.rows += still.rows
    return all_of_them
