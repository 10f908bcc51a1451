"""MIGU on a classifier, by the plugin: of each layer only the loud rows learn after the first task.

python examples/migu_classifier.py
"""

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem import MIGUPlugin
from avalanche_mgem.evaluation import AccuracyMatrix, average_accuracy, backward_transfer
from avalanche_mgem.evaluation import gating_metrics as gating
from avalanche_mgem.streams import make_stream


class NoLog:
    """Avalanche warns where there is no logger at all."""

    def log_metrics(self, metric_values: object) -> None: ...


def train(plugins: list[MIGUPlugin]) -> tuple[float, float]:
    stream = make_stream("permuted-digits", n_experiences=4, train_per_experience=600, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    accuracy = AccuracyMatrix()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        plugins=plugins,
        evaluator=EvaluationPlugin(accuracy, *gating(), loggers=[NoLog()]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
    R = accuracy.result("test")
    return average_accuracy(R), backward_transfer(R)


def main() -> None:
    for name, plugins in {
        "naive": [],
        "MIGU, gradients of quiet rows zero (as published)": [MIGUPlugin(0.7)],
        "MIGU, quiet rows truly still": [MIGUPlugin(0.7, freeze="update")],
    }.items():
        acc, bwt = train(plugins)
        print(f"{name}: ACC {acc:.3f}, BWT {bwt:+.3f}")


if __name__ == "__main__":
    main()
