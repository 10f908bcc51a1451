"""Optimisers: which are inside of others, which can be watched, and what their steps touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from torch import nn, optim

# Attributes of an optimiser that hold parameters and numbers, and no other optimiser.
_OWN = frozenset({"param_groups", "state", "defaults"})
_MOST = 64  # of a list that is looked through at every step
# Each of their parameters moves by its own gradient, and one that has none does not move at all.
# Exactly these classes: one that is derived from them may do anything.
_BY_PARAMETER = frozenset(
    each
    for each in vars(optim).values()
    if isinstance(each, type) and issubclass(each, optim.Optimizer)
) - {optim.Optimizer, optim.LBFGS}


def optimizers_among(values: Iterable[object]) -> Iterator[Any]:
    """Yield the optimisers among these values, and in the lists and mappings among them."""
    for value in values:
        kind: Any = type(value)
        steps, contains = _kind(kind)
        if steps and (isinstance(value, optim.Optimizer) or hasattr(value, "param_groups")):
            yield value
        elif contains:
            inside: Any = value.values() if isinstance(value, Mapping) else value
            if len(inside) <= _MOST:
                yield from (each for each in inside if isinstance(each, optim.Optimizer))


@lru_cache(maxsize=1024)
def _kind(kind: Any) -> tuple[bool, bool]:
    """Whether objects of a class step, and whether they are lists or mappings.

    By the class: no attribute of an object is computed.
    """
    steps = issubclass(kind, optim.Optimizer) or callable(getattr(kind, "step", None))
    return steps, issubclass(kind, Mapping | list | tuple)


def optimizers_within(optimizer: Any) -> list[Any]:
    """Return an optimiser and all that it holds, such as a lookahead's; the outermost first."""
    found = {id(optimizer): optimizer}
    waiting = [optimizer]
    while waiting:
        attributes = getattr(waiting.pop(), "__dict__", {})
        for each in optimizers_among(v for name, v in attributes.items() if name not in _OWN):
            if id(each) not in found:
                found[id(each)] = each
                waiting.append(each)
    return list(found.values())


def stepping_optimizer(optimizer: Any) -> Any:
    """Return the optimiser whose own step it is: of accelerate's wrapper, the one inside."""
    while type(optimizer).__module__.partition(".")[0] == "accelerate":
        optimizer = optimizer.optimizer
    return optimizer


def calls_hooks(optimizer: Any) -> bool:
    """Whether the optimiser's `step` calls torch's hooks.

    One that is not derived from torch's, or does not call its constructor, calls none.
    """
    has_hooks = "_optimizer_step_pre_hooks" in getattr(optimizer, "__dict__", {})
    return has_hooks and bool(getattr(type(optimizer).step, "hooked", False))


def moves_by_gradient_alone(optimizer: Any) -> bool:
    """Whether a parameter without a gradient is known to stay as it is, and its state too.

    So it is with torch's own optimisers but LBFGS, which takes all parameters for one vector. Of
    others nothing is known: a lookahead moves parameters towards former values.
    """
    return type(stepping_optimizer(optimizer)) in _BY_PARAMETER


def parameters_of(optimizer: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters of all groups."""
    for group in optimizer.param_groups:
        yield from group["params"]


def holds_any(optimizer: Any, ids: Iterable[int]) -> bool:
    """Whether one of the parameters, given by their ids, is in the optimiser's groups."""
    wanted = ids if isinstance(ids, set | frozenset) else set(ids)
    return any(id(parameter) in wanted for parameter in parameters_of(optimizer))
