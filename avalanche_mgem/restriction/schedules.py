"""How the memory strength changes while a run goes on (ours; the papers keep it constant)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from avalanche_mgem.arguments import finite, one_of, positive_int


@runtime_checkable
class Schedule(Protocol):
    """Any callable that gives the memory strength, a finite number >= 0, at a moment of the run."""

    def __call__(self, *, experience: int, iteration: int) -> float:
        """Return the strength for the 0-based experience and the 0-based iteration of the run."""
        ...


@dataclass(frozen=True)
class ConstantSchedule:
    """The same memory strength all the time."""

    value: float

    def __post_init__(self) -> None:
        finite("value", self.value, minimum=0.0)

    def __call__(self, *, experience: int, iteration: int) -> float:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class _Ramp(ABC):
    """From `start` to `end` in `steps` experiences or iterations, `end` from then on.

    Args:
        start: strength at experience (or iteration) 0.
        end: strength at experience (or iteration) `steps` - 1 and after.
        steps: >= 2.
        over: what is counted: "experiences", or "iterations" of the whole run.

    Raises:
        ValueError: a strength that is negative or not finite, fewer than 2 steps, an unknown
            `over`.
    """

    start: float
    end: float
    steps: int
    over: Literal["experiences", "iterations"] = "experiences"

    def __post_init__(self) -> None:
        finite("start", self.start, minimum=0.0)
        finite("end", self.end, minimum=0.0)
        positive_int("steps", self.steps, minimum=2)
        one_of("over", self.over, ("experiences", "iterations"))

    def __call__(self, *, experience: int, iteration: int) -> float:
        """Return the strength at this moment."""
        step = experience if self.over == "experiences" else iteration
        done = self._shape(min(step / (self.steps - 1), 1.0))
        return self.start * (1.0 - done) + self.end * done

    @abstractmethod
    def _shape(self, done: float) -> float:
        """Map the share of steps done to the share of the way gone, both in [0, 1]."""


class LinearSchedule(_Ramp):
    """A straight line from `start` to `end`."""

    def _shape(self, done: float) -> float:
        return done


class CosineSchedule(_Ramp):
    """Half a cosine wave from `start` to `end`: slow at both ends."""

    def _shape(self, done: float) -> float:
        return (1.0 - math.cos(math.pi * done)) / 2.0
