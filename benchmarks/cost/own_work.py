"""The plugin's own work in an iteration: the memory's gradients and the projection.

Both plugins are given the same minibatches and the same weights, along one training run: at each
iteration both do their work in turns, and one of them decides where the run goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training.plugins import GEMPlugin, SupervisedPlugin
from clock import Pairs, in_turns, pair_numbers, repetitions, seconds_of
from cost_cases import Case
from setting import (
    BATCH_SIZE,
    LEARNING_RATE,
    experience_of,
    gradient_vector,
    make_baseline,
    make_ours,
    make_strategy,
    relative_difference,
)
from torch import nn
from whole_train import parameters_apart

from avalanche_mgem import MGEMPlugin

# Iterations of plain training on the current task beforehand: at its very start few gradients
# conflict with the memory.
LEAD_IN = 20
_WARM_UP = 2


class SideBySide(SupervisedPlugin):
    """Measure two plugins at every iteration of a run (on after_backward) until it is enough."""

    def __init__(self, ours: MGEMPlugin, baseline: GEMPlugin, wanted: int) -> None:
        super().__init__()
        self.plugins = {"ours": ours, "baseline": baseline}
        self.pairs = Pairs()
        self.differences: list[float] = []
        self.violated: list[float] = []
        self._numbers: Iterator[int] = iter(())
        self._wanted, self._times, self._warm = wanted, 1, 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let ours open the task, as it would in a run of its own."""
        self.plugins["ours"].before_training_exp(strategy)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Measure, and leave a step behind that GEM would have taken."""
        if strategy.clock.train_exp_iterations < LEAD_IN:
            return
        gradient = gradient_vector(strategy.model)
        if self._warm < _WARM_UP:
            self._warm += 1
            seconds = [own_seconds(plugin, strategy) for plugin in self.plugins.values()]
            self._times, self._numbers = repetitions(min(seconds)), pair_numbers(self._wanted)
            lead(strategy.model, gradient_vector(strategy.model), gradient)
        elif (pair := next(self._numbers, None)) is None:
            strategy.stop_training()
        else:
            lead(strategy.model, self._measure(strategy, pair), gradient)

    def _measure(self, strategy: Any, pair: int) -> torch.Tensor:
        """Take one pair; return the baseline's projected gradient."""
        seconds, gradients = {"ours": 0.0, "baseline": 0.0}, {}
        for turn in range(self._times):
            for name in in_turns(pair + turn):
                seconds[name] += own_seconds(self.plugins[name], strategy)
                if turn == 0:
                    gradients[name] = gradient_vector(strategy.model)
        self.pairs.add(seconds["ours"] / self._times, seconds["baseline"] / self._times)
        self.differences.append(relative_difference(gradients["ours"], gradients["baseline"]))
        rows = self.plugins["ours"].last_projection.violated_rows
        self.violated.append(float(rows.double().mean()))
        return gradients["baseline"]


def own_seconds(plugin: Any, strategy: Any) -> float:
    """Return what the plugin's work takes; the minibatch's own gradient is made anew, untimed."""
    seconds = seconds_of(lambda: plugin.before_training_iteration(strategy))
    backward(strategy)
    seconds += seconds_of(lambda: plugin.after_backward(strategy))
    plugin.after_update(strategy)  # the iteration ends: what ours keeps of it is not to grow
    return seconds


def backward(strategy: Any) -> None:
    """Compute the gradient of the minibatch, as the strategy does."""
    strategy.optimizer.zero_grad()
    strategy.mb_output = strategy.forward()
    strategy.criterion().backward()


def lead(model: nn.Module, projected: torch.Tensor, gradient: torch.Tensor) -> None:
    """Make the projected gradient the model's, no longer than the gradient was.

    With many rows at gamma 0.5 the push is so long that weights would overflow; the way that it
    points is what makes the next iteration's violations those of a GEM run.
    """
    shorter = min(1.0, float(gradient.norm()) / max(float(projected.norm()), 1e-30))
    sizes = [parameter.numel() for parameter in model.parameters()]
    for parameter, part in zip(model.parameters(), projected.split(sizes), strict=True):
        parameter.grad = (part * shorter).view_as(parameter)


def measure_own_work(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Return the row of one case."""
    ours = make_ours(case)
    baseline = make_baseline(case, ours)
    apart = parameters_apart(case, ours, baseline) if case.same_problem else math.nan
    probe = SideBySide(ours, baseline, repeats)
    strategy = make_strategy(case, [probe], len(baseline.memory_x), LEARNING_RATE)
    torch.manual_seed(0)
    # One more than there are pairs: the iteration that stops.
    strategy.train(experience_of(case, (LEAD_IN + _WARM_UP + repeats + 1) * BATCH_SIZE))
    return [
        {
            "measure": "ratio",
            "unit": "ms",
            **probe.pairs.summary(),
            "gradient_difference": max(probe.differences) if case.same_problem else math.nan,
            "parameter_difference": apart,
            "violated_rows": sum(probe.violated) / len(probe.violated),
            "violated_iterations": sum(map(bool, probe.violated)) / len(probe.violated),
        }
    ]
