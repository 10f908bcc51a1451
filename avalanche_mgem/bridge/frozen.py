"""What of Avalanche does not go together with parameters that are frozen in training."""

from __future__ import annotations

from avalanche.training.plugins import MIRPlugin, RWalkPlugin

from avalanche_mgem.bridge.beside import refusal
from avalanche_mgem.bridge.strategy import Strategy

_DIFFERENTIATES = "differentiates the loss with respect to every parameter of the model"
_WANTING_ALL: tuple[tuple[type, str], ...] = (
    (MIRPlugin, _DIFFERENTIATES),
    (
        RWalkPlugin,
        "follows the parameters that it has seen before training, and forgets the importance of "
        "what has no gradient",
    ),
)


def refuse_beside_frozen(strategy: Strategy, plugin: object) -> None:
    """Refuse what needs a gradient of every parameter beside a plugin that freezes some.

    Called before training: Avalanche's own error comes after the first experience, or never.

    Raises:
        ValueError: the strategy has a plugin of Avalanche that needs all gradients, or is one.
    """
    for other in strategy.plugins:
        for kind, reason in _WANTING_ALL:
            if isinstance(other, kind):
                raise refusal(plugin, other, f"freezes parameters, and {kind.__name__} {reason}")
    # By name: both modules of Avalanche that have the class import packages of their own.
    if "LaMAML" in {parent.__name__ for parent in type(strategy).__mro__}:
        raise refusal(plugin, strategy, f"freezes parameters, and LaMAML {_DIFFERENTIATES}")
