"""The step that an optimiser takes, measured, and taken again in another direction."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn, optim

from avalanche_mgem.model.gradients import Parameters, positions
from avalanche_mgem.model.optimizers import optimizers_within

# Their steps are searched for, or are sizes of their own that only begin at the learning rate.
_SIZES_OF_THEIR_OWN = (optim.LBFGS, optim.Rprop)


@dataclass(frozen=True)
class Rate:
    """What a parameter's step is of its update: step = -value * update.

    Attributes:
        value: the signed learning rate; 0 where no optimiser moves the parameter, and negative in a
            group that maximises, whose steps go along the gradient.
        is_known: False where the value tells how parameters compare only, because the optimiser
            finds the size of its steps itself.
    """

    value: float
    is_known: bool = True


def step_rates(parameters: Parameters, optimizers: Iterable[Any]) -> list[Rate]:
    """Return the rate of each parameter; the rates of several optimisers that hold it add up.

    Not known are those of a group whose `lr` is missing, None or no number, as in Adafactor with
    relative steps; those of optimisers whose `lr` is a multiple of a size that they estimate, which
    have it in their groups as `d` (D-Adaptation, Prodigy) or are made with lr=1 where none is given
    (Adadelta); and those of LBFGS and Rprop.
    """
    rates: dict[int, Rate] = {}
    for optimizer in optimizers:
        estimates = any(_estimates(each.__class__) for each in optimizers_within(optimizer))
        for group in optimizer.param_groups:
            rate = _rate(group, estimates)
            for parameter in group["params"]:
                other = rates.get(id(parameter), Rate(0.0))
                both = other.is_known and rate.is_known
                rates[id(parameter)] = Rate(other.value + rate.value, both)
    return [rates.get(id(parameter), Rate(0.0)) for parameter in parameters]


def unmoved(parameters: Parameters, optimizers: Sequence[Any]) -> list[bool]:
    """Return whether the rate of each parameter is zero; as `step_rates`, and sooner."""
    if len(optimizers) > 1:
        return [rate.value == 0 for rate in step_rates(parameters, optimizers)]
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    moving = (group for group in groups if _rate(group, estimates=False).value != 0)
    moved = {id(parameter) for group in moving for parameter in group["params"]}
    return [id(parameter) not in moved for parameter in parameters]


def _rate(group: Mapping[str, Any], estimates: bool) -> Rate:
    sign = -1.0 if group.get("maximize") else 1.0
    value = group.get("lr")
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach().item()
    if not isinstance(value, Real):
        return Rate(sign, is_known=False)
    return Rate(sign * float(value), is_known=not estimates and "d" not in group)


@cache
def _estimates(kind: type) -> bool:
    """Whether the optimisers of a class take their `lr` for a multiple of a size they estimate."""
    if issubclass(kind, _SIZES_OF_THEIR_OWN):
        return True
    for each in kind.__mro__:
        if inspect.isfunction(function := vars(each).get("__init__")):
            given = inspect.signature(function).parameters.get("lr")
            if given is not None:
                return given.default in (1, 1.0)
    return False


class StepRecorder:
    """Measures an optimiser's step as an update u = (before - after) / rate for each parameter.

    A restriction of the step s = -rate u is a restriction of u in the metric of the learning rates:
    with w a rate's size relative to the largest, <rate u, a> >= 0 is <sqrt(w) u, sqrt(w) a> >= 0.
    So updates are handed out times sqrt(w) and memory rows must be scaled by `metric`; with one
    learning rate all of this is multiplication by one.

    Rates that are not known are made such that the update is as long as the gradient: each is its
    value times c = ||s|| / ||value * gradient||, both over all parameters of this kind. In plain
    SGD, c is one. So a memory strength of gamma pushes along a memory row by gamma times what the
    step makes of a gradient of that length, as in GEM. (Where the gradient is zero and a step is
    taken all the same, c is that of the step before, and in a first step, which has none before
    it, the update has length one.)

    Attributes:
        metric: sqrt(w), one number a parameter; after `finish`.
        rate: the largest of the rates, which w is relative to; after `finish`.
    """

    rate: float = 1.0

    _scale: float | None = None  # c

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of the remembered parameters."""
        self.metric: list[float] = []
        self._before: list[Tensor] = []
        self._rates: list[Rate] = []
        self._slope = 0.0  # ||value * gradient|| where the rates are not known
        self._steps: list[float] = []  # of each parameter, its rate; 0: it did not move

    def start(self, parameters: Parameters, optimizers: Iterable[Any]) -> None:
        """Remember where the parameters are; a copy of them is kept until the step."""
        self._before = [p.detach().clone() for p in parameters]
        self._rates = step_rates(parameters, optimizers)
        self._slope = _slope(parameters, self._rates)

    def finish(self, parameters: Parameters) -> list[Tensor | None]:
        """Return sqrt(w) u for each parameter; None for those that the step does not move.

        That are those without a gradient, and those that no known optimiser has or that have a rate
        of zero; unless they have moved all the same.
        """
        rates = self._found_rates(parameters)
        self.rate = largest = max(map(abs, rates))
        self.metric = [math.sqrt(abs(r) / largest) if r != 0 else 1.0 for r in rates]
        self._steps = [
            rate if p.grad is not None or not torch.equal(before, p) else 0.0
            for p, before, rate in zip(parameters, self._before, rates, strict=True)
        ]
        moved = zip(parameters, self._before, self._steps, self.metric, strict=True)
        return [
            (_wide(before) - _wide(p.detach())) * (factor / rate) if rate != 0 else None
            for p, before, rate, factor in moved
        ]

    def _found_rates(self, parameters: Parameters) -> list[float]:
        """The rates, with those that were not known before the step."""
        rates = [
            Rate(1.0, is_known=False) if rate.value == 0 and not torch.equal(before, p) else rate
            for p, before, rate in zip(parameters, self._before, self._rates, strict=True)
        ]
        if all(rate.is_known for rate in rates):
            return [rate.value for rate in rates]
        moved = [
            _norm(_wide(before) - _wide(p.detach()))
            for p, before, rate in zip(parameters, self._before, rates, strict=True)
            if not rate.is_known
        ]
        # An optimiser may leave no gradients behind.
        step, slope = math.hypot(*moved), _slope(parameters, rates) or self._slope
        if step > 0 and slope > 0:
            self._scale = step / slope
        scale = step if self._scale is None else self._scale
        return [rate.value * (1.0 if rate.is_known else scale) for rate in rates]

    @torch.no_grad()
    def redo(self, parameters: Sequence[nn.Parameter], taken: Tensor, wanted: Tensor) -> None:
        """Take the update `wanted` in place of the one `taken` (both times sqrt(w), [P]).

        Where the two are the same, the parameters are not touched: not by rounding either.
        """
        everything = zip(
            parameters, positions(parameters), self._before, self._steps, self.metric, strict=True
        )
        for p, columns, before, rate, factor in everything:
            if rate != 0:
                step = wanted[columns].view_as(p) * (rate / factor)
                differs = (wanted[columns] != taken[columns]).view_as(p)
                p.copy_(torch.where(differs, (_wide(before) - step).to(p.dtype), p))

    @torch.no_grad()
    def undo(self, parameters: Parameters) -> None:
        """Put the parameters back where they were before the step."""
        for p, before in zip(parameters, self._before, strict=True):
            p.copy_(before)


def _slope(parameters: Parameters, rates: Sequence[Rate]) -> float:
    """||value * gradient|| over the parameters whose rates are not known."""
    return math.hypot(
        *(
            rate.value * _norm(p.grad)
            for p, rate in zip(parameters, rates, strict=True)
            if not rate.is_known and p.grad is not None
        )
    )


def _norm(value: Tensor) -> float:
    value = value.coalesce().values() if value.layout == torch.sparse_coo else value
    return float(torch.linalg.vector_norm(_wide(value.detach())))


def _wide(value: Tensor) -> Tensor:
    """At least float32: a difference of two half-precision numbers is mostly rounding."""
    return value if value.dtype == torch.float64 else value.float()
