"""The optimisers of a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.optimizers import holds_any, optimizers_among, parameters_of


def require_optimizer(strategy: Strategy, plugin: str) -> None:
    """Raise ValueError for a strategy that has no optimiser, such as Avalanche's StreamingLDA."""
    if strategy.optimizer is None:
        raise ValueError(
            f"{plugin} restricts the steps of an optimizer, and {type(strategy).__name__} has "
            "none: got optimizer=None"
        )


def optimizers_of(strategy: Strategy) -> list[Any]:
    """Return the strategy's `optimizer`, and what others among its attributes train its model."""
    own: Any = strategy.optimizer
    if own is None:
        return []
    others = [each for each in optimizers_among(vars(strategy).values()) if each is not own]
    if not others:
        return [own]
    trained = {id(parameter) for parameter in strategy.model.parameters()}
    others = list({id(each): each for each in others if holds_any(each, trained)}.values())
    return [own, *others]


def stepped_parameters(strategy: Strategy) -> Iterator[nn.Parameter]:
    """Yield each parameter that an optimiser of the strategy has, once."""
    return parameters_of_all(optimizers_of(strategy))


def parameters_of_all(optimizers: list[Any]) -> Iterator[nn.Parameter]:
    """Yield each parameter that one of the optimisers has, once."""
    if len(optimizers) == 1:
        yield from parameters_of(optimizers[0])
        return
    yield from {id(p): p for each in optimizers for p in parameters_of(each)}.values()
