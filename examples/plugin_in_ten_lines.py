"""mGEM as a plugin of any Avalanche strategy.

python examples/plugin_in_ten_lines.py
"""

import torch
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.streams import make_stream


def main() -> None:
    torch.manual_seed(0)
    stream = make_stream("permuted-digits", n_experiences=3, train_per_experience=500)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        eval_mb_size=256,
        plugins=[MGEMPlugin(patterns_per_experience=64, memory_groups=8, parameter_groups="layer")],
    )
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream)


if __name__ == "__main__":
    main()
