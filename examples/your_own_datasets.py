"""A comparison on data sets of your own: any of torch, torchvision or continuum, a pair a task.

Each pair of digits is a task with a head of its own. The same way goes a scenario of continuum,
which is a list of data sets: scenario_from_datasets(train=ClassIncremental(...), test=...).

python examples/your_own_datasets.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, Subset

from avalanche_mgem.experiment import MLPFactory, Training, compare
from avalanche_mgem.streams import scenario_from_datasets


class Digits(Dataset):
    """Items (image [1, 8, 8], digit). With `targets`, no image is read to know the digits."""

    def __init__(self) -> None:
        images, self.targets = load_digits(return_X_y=True)
        self.images = torch.from_numpy(images / 16).float().reshape(-1, 1, 8, 8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])


def main() -> None:
    digits = Digits()
    train, test = [], []
    for task in range(5):
        rows = np.flatnonzero(digits.targets // 2 == task)
        train.append(Subset(digits, rows[::2].tolist()))
        test.append(Subset(digits, rows[1::2].tolist()))
    compare(
        ["naive", "replay", "mgem-p"],
        stream=scenario_from_datasets(train, test, task_labels=True),
        model=MLPFactory((50,), heads="multi"),
        training=Training(memory=10, learning_rate=0.05),
        seeds=2,
        out="digits-compared",
    )


if __name__ == "__main__":
    main()
