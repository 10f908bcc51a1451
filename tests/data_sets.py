"""Data sets as others make them: of torch, torchvision and continuum, which reads count."""

import numpy as np
import torch
from tiny import N_FEATURES, tiny_data
from torch.utils.data import Dataset


class Counting(Dataset):
    """Items (x, y), y as `as_label` makes it; counts which are read."""

    def __init__(self, x, y, as_label=int):
        self.x, self.y, self.as_label = x, y, as_label
        self.read = []

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        self.read.append(index)
        return self.x[index], self.as_label(self.y[index])


class TaskSet(Counting):
    """As a task set of continuum 1.2.7: items (x, y, t), labels in `_y`, tasks in `_t`."""

    def __init__(self, x, y, task, target_trsf=None):
        super().__init__(x, np.asarray(y), np.int64)
        self._y, self._t = np.asarray(y), np.full(len(y), float(task))
        self.target_trsf = target_trsf

    def get_task_target_trsf(self, task):
        return self.target_trsf

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, y if self.target_trsf is None else self.target_trsf(y), self._t[index]


def by_classes(kind=Counting, n_experiences=3, **changes):
    """Pairs of training and test data sets, two classes of `tiny_data` an experience."""
    data = tiny_data()
    pairs = []
    for i in range(n_experiences):
        parts = []
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
            rows = torch.div(y, 2, rounding_mode="floor") == i
            arguments = {"task": i} if kind is TaskSet else {}
            parts.append(kind(x[rows], y[rows], **arguments, **changes))
        pairs.append(tuple(parts))
    return pairs


SHAPE = (N_FEATURES,)
