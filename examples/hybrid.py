"""The hybrid magnitude strategy: the less alike two tasks are, the more of the network moves.

python examples/hybrid.py
"""

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem import HybridMagnitudePlugin
from avalanche_mgem.evaluation import AccuracyMatrix, DecisionMetric, average_accuracy
from avalanche_mgem.evaluation import backward_transfer as bwt
from avalanche_mgem.streams import make_stream


class NoLog:
    """Avalanche warns where there is no logger at all."""

    def log_metrics(self, metric_values: object) -> None: ...


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (64, 100, 100):
        layers += [nn.Linear(width, 100), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def train(name: str, plugin: HybridMagnitudePlugin) -> None:
    stream = make_stream("permuted-digits", n_experiences=4, train_per_experience=600, seed=0)
    model, accuracy, decisions = network(), AccuracyMatrix(), DecisionMetric(figure=False)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        train_epochs=4,
        plugins=[plugin],
        evaluator=EvaluationPlugin(accuracy, decisions, loggers=[NoLog()]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
    R = accuracy.result("test")
    print(f"{name}: ACC {average_accuracy(R):.3f}, BWT {bwt(R):+.3f}")
    for task, decision in enumerate(decisions.history):
        known = decision.similarity is not None
        alike = f"cosine {decision.similarity:+.3f}, " if known else ""
        print(f"  task {task}: {alike}{len(decision.trained)} of {len(decision.modules)} train")


def main() -> None:
    train("everything trains", HybridMagnitudePlugin("initialized"))
    train("the last module trains", HybridMagnitudePlugin("frozen", low=1))
    # Where the threshold must stand depends on the stream: look at the cosines first.
    train("as the tasks ask for", HybridMagnitudePlugin(threshold=0.2, low=1, seed=0))


if __name__ == "__main__":
    main()
