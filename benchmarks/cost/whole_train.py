"""A whole strategy.train() of one experience, and the projection's share of its iterations."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import GEMPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from clock import Pairs, in_turns, pair_numbers, seconds_of
from cost_cases import Case
from setting import (
    BATCH_SIZE,
    experience_of,
    make_baseline,
    make_ours,
    make_strategy,
    parameter_vector,
    relative_difference,
)

from avalanche_mgem import MGEMPlugin

_ITERATIONS = {"mlp": 30, "resnet": 3}
_ITERATIONS_TO_AGREE = {"mlp": 5, "resnet": 2}
_SURELY_THE_SAME = 1e-6


class Shares(SupervisedPlugin):
    """Adds up the seconds of the iterations, and those of the projection in them.

    Stands before the plugin that it watches: on before_training_iteration the clock starts, on
    after_training_iteration it stops. Loading the minibatch is no part of it.
    """

    def __init__(self, watched: Any) -> None:
        super().__init__()
        self._watched, self._start = watched, 0.0
        self.iterations = self.projection = 0.0

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.iterations += time.perf_counter() - self._start
        parts = getattr(self._watched, "last_seconds", {})
        self.projection += parts.get("projection", 0.0)


def train(case: Case, plugin: Any, iterations: int, seed: int) -> tuple[Naive, Shares, float]:
    """Train on the current task; return the strategy, its shares and the seconds it took."""
    shares = Shares(plugin)
    memories = len(plugin.memory_x) if isinstance(plugin, GEMPlugin) else case.tasks
    strategy = make_strategy(case, [shares, plugin], memories)
    experience = experience_of(case, iterations * BATCH_SIZE)
    torch.manual_seed(seed)
    seconds = seconds_of(lambda: strategy.train(experience))
    return strategy, shares, seconds


def parameters_apart(case: Case, ours: MGEMPlugin, baseline: GEMPlugin) -> float:
    """Return how far apart both sides' parameters are after a few iterations, relative.

    Training is not continuous: at the bend of a ReLU or where a product with a memory row is almost
    zero, rounding decides, and GEMPlugin ends up to 3e-4 from itself when it starts 1e-7 away. So
    where one run is apart, the median of three counts.
    """
    apart: list[float] = []
    for seed in range(3):
        ends = [
            _end(case, copied(plugin), _ITERATIONS_TO_AGREE[case.model], seed)
            for plugin in (ours, baseline)
        ]
        apart.append(relative_difference(*ends))
        if apart[0] <= _SURELY_THE_SAME:
            break
    return float(np.median(apart))


def _end(case: Case, plugin: Any, iterations: int, seed: int) -> torch.Tensor:
    return parameter_vector(train(case, plugin, iterations, seed)[0].model)


def copied(plugin: Any) -> Any:
    """Return a plugin of its own, to be trained with: training adds to its memory."""
    if not isinstance(plugin, GEMPlugin):
        return copy.deepcopy(plugin)
    other = copy.copy(plugin)
    for name in ("memory_x", "memory_y", "memory_tid"):
        setattr(other, name, dict(getattr(plugin, name)))
    return other


def measure_train(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of one case: the ratio, and the projection's share."""
    ours = make_ours(case)
    plugins = {"ours": ours, "baseline": make_baseline(case, ours)}
    iterations = _ITERATIONS[case.model]
    for plugin in plugins.values():  # a warm-up
        train(case, copied(plugin), 2, seed=0)
    pairs, shares, apart = Pairs(), [], []
    for pair in pair_numbers(repeats):
        seconds, ends = {}, {}
        for name in in_turns(pair):
            strategy, share, seconds[name] = train(
                case, copied(plugins[name]), iterations, seed=pair
            )
            ends[name] = parameter_vector(strategy.model)
            if name == "ours":
                shares.append(share.projection / share.iterations)
        pairs.add(**seconds)
        apart.append(relative_difference(ends["ours"], ends["baseline"]))
    ratio = {
        "measure": "ratio",
        "unit": "ms",
        **pairs.summary(),
        # The median, for the reason that `parameters_apart` gives.
        "parameter_difference": float(np.median(apart)) if case.same_problem else math.nan,
        "parameter_difference_worst": max(apart) if case.same_problem else math.nan,
    }
    return [ratio, _share_row(shares)]


def _share_row(shares: list[float]) -> dict[str, Any]:
    lower, middle, upper = np.percentile(shares, [25, 50, 75])
    return {
        "measure": "projection share",
        "unit": "of an iteration",
        "value": float(middle),
        "quartile_1": float(lower),
        "quartile_3": float(upper),
        "pairs": len(shares),
    }
