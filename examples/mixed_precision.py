"""Half precision, accumulated gradients and clipping, beside mGEM and MIGU.

python examples/mixed_precision.py
"""

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem import (
    ClipGradientPlugin,
    MGEMPlugin,
    MIGUPlugin,
    with_gradient_accumulation,
    with_mixed_precision,
)
from avalanche_mgem.evaluation import AccuracyMatrix, average_accuracy
from avalanche_mgem.streams import make_stream


class NoLog:
    """Avalanche warns where there is no logger at all."""

    def log_metrics(self, metric_values: object) -> None: ...


def main() -> None:
    torch.manual_seed(0)
    stream = make_stream("permuted-digits", n_experiences=3, train_per_experience=500, seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    accuracy, clip = AccuracyMatrix(), ClipGradientPlugin(max_norm=1.0)
    # Any strategy of Avalanche with its standard training loop will do in place of Naive.
    strategy = with_gradient_accumulation(with_mixed_precision(Naive))(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.005),
        train_mb_size=40,  # one step, one projection, one mask
        micro_batch_size=16,  # at most so many samples are in the model at a time
        precision="bf16",  # "fp16": with a scaled loss
        plugins=[MGEMPlugin(64, seed=0), MIGUPlugin(0.3, freeze="update"), clip],
        evaluator=EvaluationPlugin(accuracy, loggers=[NoLog()]),
    )
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
        print(f"after {experience.current_experience}: norm before clipping {clip.last_norm:.3f}")
    print(f"ACC {average_accuracy(accuracy.result('test')):.3f}, in {model[1].weight.dtype}")


if __name__ == "__main__":
    main()
