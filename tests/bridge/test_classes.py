"""Classes are integers, and what is none is refused with the arguments that need them."""

import numpy as np
import pytest
import torch

from avalanche_mgem.bridge.classes import class_targets


class Labelled:
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)


CLASSES = {
    "integers": [0, 2, 1],
    "numpy": np.array([0, 2, 1], dtype=np.uint8),
    "scalars of numpy": [np.int32(0), np.int64(2), np.int16(1)],
    "a tensor": torch.tensor([0, 2, 1]),
    "tensors": [torch.tensor(0), torch.tensor(2), torch.tensor(1)],
    "tensors of one element": [torch.tensor([0]), torch.tensor([2]), torch.tensor([1])],
}


@pytest.mark.parametrize("name", CLASSES)
def test_integers_of_any_kind_are_classes(name):
    assert class_targets(Labelled(CLASSES[name])).tolist() == [0, 2, 1]


@pytest.mark.parametrize("targets", [[False, True], torch.tensor([False, True])])
def test_yes_and_no_are_classes(targets):
    assert class_targets(Labelled(targets)).tolist() == [0, 1]


NO_CLASSES = {
    "floats": [0.1, 0.9],
    "floats without a fraction": [0.0, 1.0],
    "a float tensor": torch.tensor([0.1, 0.9]),
    "floats of numpy": np.array([0.1, 0.9]),
    "vectors": torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
    "several labels": torch.tensor([[1, 0, 1], [0, 1, 1]]),
    "lists": [[1, 2], [3]],
    "masks": np.zeros((2, 4, 4), dtype=int),
    "dicts": [{"boxes": torch.zeros(1, 4)}] * 2,
    "words": ["cat", "dog"],
    "complex": torch.tensor([1j, 2j]),
    "nothing": [None, None],
}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_anything_else_is_refused(name):
    message = r"memory_split='class' and memory_selection='class-balanced' need an integer"
    with pytest.raises(ValueError, match=message):
        class_targets(Labelled(NO_CLASSES[name]))


def test_a_data_set_without_targets_is_named():
    with pytest.raises(ValueError, match=r"need a data set with `targets`.*got list"):
        class_targets([1, 2])


def test_a_target_for_each_sample():
    data = Labelled([0, 1])
    data.targets = [0]
    data.__class__ = type("Longer", (Labelled,), {"__len__": lambda self: 2})
    with pytest.raises(ValueError, match="a target for each of 2 samples, got 1"):
        class_targets(data)
