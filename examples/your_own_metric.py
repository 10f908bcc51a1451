"""A metric of your own of what the restriction did: how many constraints were active at once.

python examples/your_own_metric.py
"""

import sys
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_mgem import MGEM
from avalanche_mgem.streams import make_stream


class ActiveConstraints(PluginMetric):
    """The number of memory rows that pushed the last gradient of an experience."""

    def reset(self) -> None:
        self._active = 0

    def result(self) -> int:
        return self._active

    def before_training_exp(self, strategy: Any) -> None:
        self.reset()

    def after_training_exp(self, strategy: Any) -> MetricValue | None:
        projection = strategy.plugins[0].last_projection
        if projection is None:  # no memory yet
            return None
        self._active = int((projection.dual > 0).any(dim=0).sum())
        return MetricValue(
            self, "Active_Constraints", self._active, strategy.clock.train_iterations
        )


def main() -> None:
    torch.manual_seed(0)
    stream = make_stream("permuted-digits", n_experiences=4, train_per_experience=200)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    strategy = MGEM(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        patterns_per_experience=32,
        memory_groups=4,
        memory_strength=0.0,
        train_mb_size=10,
        evaluator=EvaluationPlugin(ActiveConstraints(), loggers=[TextLogger(sys.stdout)]),
    )
    strategy.train(stream.train_stream)


if __name__ == "__main__":
    main()
