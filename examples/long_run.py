"""A run that may be stopped at any moment, and goes on when it is started again.

python examples/long_run.py
"""

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Replay
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.checkpoint import load_checkpoint, save_checkpoint
from avalanche_mgem.evaluation import AccuracyMatrix, ScalarCSVLogger, average_accuracy
from avalanche_mgem.streams import make_stream


def main() -> None:
    stream = make_stream("permuted-digits", n_experiences=3, train_per_experience=500, seed=0)
    # Everything is made as for a first start. What the file has takes the place of it.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    accuracy = AccuracyMatrix()
    strategy = Replay(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        mem_size=300,
        train_mb_size=10,
        eval_mb_size=256,
        plugins=[MGEMPlugin(patterns_per_experience=64, memory_groups=8)],
        evaluator=EvaluationPlugin(accuracy, loggers=[ScalarCSVLogger("metrics.csv")]),
    )
    # With `benchmark`, the samples that the replay memory refers to are not written each time.
    strategy, start = load_checkpoint(strategy, "run.ckpt", benchmark=stream)
    print(f"{start} experiences are done")
    for experience in stream.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
        save_checkpoint(strategy, "run.ckpt", benchmark=stream)
    print(f"ACC {average_accuracy(accuracy.result('test')):.3f}")


if __name__ == "__main__":
    main()
