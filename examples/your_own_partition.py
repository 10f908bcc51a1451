"""Modules of your own for p-mGEM: by patterns on parameter names, or by a function of the model.

python examples/your_own_partition.py
"""

from collections.abc import Mapping

import torch
from torch import nn

from avalanche_mgem import MGEM
from avalanche_mgem.streams import make_stream

BY_PATTERN = {"features": ["1.*", "3.*"], "head": ["5.*"]}


def weights_and_biases(model: nn.Module) -> Mapping[str, list[str]]:
    names = [name for name, _ in model.named_parameters()]
    return {
        "weights": [name for name in names if name.endswith("weight")],
        "biases": [name for name in names if name.endswith("bias")],
    }


def main() -> None:
    stream = make_stream("permuted-digits", n_experiences=3, train_per_experience=200)
    for groups in (BY_PATTERN, weights_and_biases):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU()),
            nn.Linear(50, 10),
        )
        strategy = MGEM(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            patterns_per_experience=32,
            parameter_groups=groups,
            train_mb_size=10,
            eval_mb_size=256,
            evaluator=None,
        )
        strategy.train(stream.train_stream)
        last = strategy.plugins[0].last_projection
        print(dict(zip(last.module_names, last.violated_rows.sum(dim=1).tolist(), strict=True)))


if __name__ == "__main__":
    main()
