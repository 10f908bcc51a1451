"""mGEM and MIGU in several processes that share every minibatch, or in one.

torchrun --nproc-per-node 2 examples/distributed.py
python examples/distributed.py
"""

import os

import torch
from avalanche.distributed import DistributedHelper
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem import MGEMPlugin, MIGUPlugin
from avalanche_mgem.evaluation import AccuracyMatrix, average_accuracy
from avalanche_mgem.model.distributed import data_parallel, n_processes, process_index
from avalanche_mgem.streams import make_stream


class NoLog:
    """Avalanche warns where there is no logger at all."""

    def log_metrics(self, metric_values: object) -> None: ...


class Parallel(Naive):
    """Wraps the model in DistributedDataParallel, and anew where a task has made it grow."""

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        return data_parallel(super().model_adaptation(model))


def main() -> None:
    if "RANK" in os.environ:  # as torchrun sets it; gloo on a CPU, nccl where GPUs are
        DistributedHelper.init_distributed(random_seed=0)
    torch.manual_seed(0)  # all processes begin with the same model
    stream = make_stream("permuted-digits", n_experiences=3, train_per_experience=500, seed=0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()
    ).append(nn.Linear(100, 10))
    accuracy = AccuracyMatrix()
    strategy = Parallel(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=16 // n_processes(),  # of each process
        train_epochs=2,
        eval_mb_size=256,
        device=DistributedHelper.make_device(),
        plugins=[MGEMPlugin(patterns_per_experience=64), MIGUPlugin(0.3)],
        evaluator=EvaluationPlugin(accuracy, loggers=[NoLog()]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
    # Avalanche deals out the test samples too, and each process measures on its own.
    part = f"process {process_index() + 1} of {n_processes()}"
    print(f"{part}: average accuracy {average_accuracy(accuracy.result('test')):.3f}")
    if n_processes() > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
