"""The accuracy matrix and what the restriction did, in TensorBoard and in a CSV file.

python examples/watch_in_tensorboard.py
tensorboard --logdir watched
"""

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_mgem import MGEM
from avalanche_mgem.evaluation import (
    ScalarCSVLogger,
    accuracy_matrix_metrics,
    restriction_metrics,
)
from avalanche_mgem.streams import make_stream


def main() -> None:
    torch.manual_seed(0)
    stream = make_stream("rotated-digits", n_experiences=3, train_per_experience=200)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    evaluator = EvaluationPlugin(
        accuracy_matrix_metrics(heat_map=True),
        restriction_metrics(modules=True, histograms=True),
        loggers=[TensorboardLogger("watched"), ScalarCSVLogger("watched/scalars.csv")],
    )
    strategy = MGEM(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        patterns_per_experience=32,
        parameter_groups="layer",
        generalization_every=5,
        train_mb_size=10,
        eval_mb_size=256,
        evaluator=evaluator,
    )
    strategy.eval(stream.test_stream)  # before any training: what FWT is measured against
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
    print("Watch: tensorboard --logdir watched")


if __name__ == "__main__":
    main()
