"""The time of a step on a device, and the memory that it takes there at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

Mark = Any  # an event of CUDA, or seconds
Step = Callable[[], AbstractContextManager[None]]


def mark(device: torch.device) -> Mark:
    """Return this moment of the device's work: an event on CUDA, else the time of the clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Return the seconds between two moments that are past."""
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1e3


def wait(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_peak(device: torch.device) -> int:
    """Begin to watch the most memory that is taken; return the bytes that are now."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_mebibytes(device: torch.device, before: int) -> float | None:
    """Return the most since `start_peak` above what there was; None: this device cannot tell."""
    if device.type != "cuda":
        return None
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


class StepClock(SupervisedPlugin):
    """Times every iteration after the first ones, or lets another watch follow it.

    Stands before all other plugins: a step goes from before_training_iteration to
    after_training_iteration, all plugins' work included. Loading the minibatch is no part of it.

    Args:
        device: on which the strategy trains.
        warm_up: iterations of each training that are not timed.
    """

    def __init__(self, device: torch.device, warm_up: int) -> None:
        super().__init__()
        self._device, self._warm_up = device, warm_up
        self._open, self._start = ExitStack(), None
        self.restart()

    def restart(self) -> None:
        """Forget the iterations so far; time those to come."""
        self._marks: list[tuple[Mark, Mark]] = []
        self._step: Step | None = None
        self._steps = 0

    def follow(self, step: Step, steps: int) -> None:
        """Let a context manager enclose each of so many iterations, which are not timed then."""
        self._step, self._steps = step, steps

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Start."""
        number = strategy.clock.train_exp_iterations - self._warm_up
        if number < 0:
            return
        if self._step is None:
            self._start = mark(self._device)
        elif number < self._steps:
            self._open.enter_context(self._step())

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop."""
        self._open.close()
        if self._start is not None:
            self._marks.append((self._start, mark(self._device)))
            self._start = None

    def seconds(self) -> float:
        """Return the median of the timed iterations."""
        wait(self._device)
        return statistics.median(seconds_between(*pair) for pair in self._marks)
