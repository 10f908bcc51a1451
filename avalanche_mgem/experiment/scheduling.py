"""A learning rate that falls over each experience and begins anew with the next."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.experiment.schedules import SCHEDULES


class ScheduleEachExperience(SupervisedPlugin):
    """Sets the optimiser's learning rates before each iteration, and puts them back afterwards.

    The rate of each parameter group is its own times the schedule's factor, over all iterations of
    all epochs of an experience. Runs on before_training_iteration, when the data loader is that of
    the training, a memory's included, and on after_training_exp. Avalanche's LRSchedulerPlugin
    keeps one scheduler for the whole stream, which has come to its end with the first experience.

    Args:
        schedule: a name in SCHEDULES.
    """

    def __init__(self, schedule: str) -> None:
        super().__init__()
        self._schedule = schedule
        self._rates: list[float] = []  # of an experience, before the schedule

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Begin anew."""
        self._rates = []

    def before_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Set the rates of this iteration."""
        groups = strategy.optimizer.param_groups
        self._rates += [group["lr"] for group in groups[len(self._rates) :]]
        total = len(strategy.dataloader) * strategy.train_epochs
        factor = SCHEDULES[self._schedule](strategy.clock.train_exp_iterations / total)
        for group, rate in zip(groups, self._rates, strict=False):
            group["lr"] = rate * factor

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Put the rates back."""
        for group, rate in zip(strategy.optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate
        self._rates = []
