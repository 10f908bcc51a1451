"""What a plugin or a callback shows of the gate in it."""

from __future__ import annotations

from torch import Tensor

from avalanche_mgem.model.account import Account
from avalanche_mgem.model.gate import RowGate


class ShowsGate:
    """The properties of a plugin or a callback that has a gate."""

    _gate: RowGate

    @property
    def last_account(self) -> Account | None:
        """What of the model is gated, what is not, and what its heads are; None before training."""
        return self._gate.last_account

    @property
    def mask_fraction(self) -> float:
        """The fraction of the rows that is held still."""
        return self._gate.mask_fraction

    @property
    def last_mask(self) -> dict[str, Tensor] | None:
        """Which rows the last step might move; None where all might."""
        return self._gate.last_mask

    @property
    def last_path(self) -> dict[str, str] | None:
        """How the gradients of the last step that masked rows were made, by layer; None: none did.

        "fused": those of masked rows were not computed, which makes a step faster. "masked: " and
        the reason why not: all were, and then masked. "zeroed: " and the reason: all were, of a
        gradient of the layer's output in which masked units were zero.
        """
        return self._gate.last_path

    @property
    def last_scores(self) -> dict[str, Tensor] | None:
        """The scores of the last step."""
        return self._gate.last_scores
