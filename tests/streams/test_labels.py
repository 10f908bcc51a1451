"""Labels of anybody's data sets: right, and without decoding where they are told."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from data_sets import Counting, TaskSet
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import MNIST, FakeData
from torchvision.transforms import ToTensor

from avalanche_mgem.streams.labels import labels_of

Y = [3, 0, 3, 1, 2, 1, 0, 3, 2, 2]
X = torch.arange(20.0).reshape(10, 2)

AS_LABELS = {
    "int": int,
    "numpy": np.int64,
    "uint8": np.uint8,
    "tensor": torch.tensor,
    "tensor [1]": lambda y: torch.tensor([y]),
    "array []": np.array,
    "array [1]": lambda y: np.array([y]),
    "list": lambda y: [y],
}


def counting(as_label=int, **told):
    dataset = Counting(X, Y, as_label)
    vars(dataset).update(told)
    return dataset


@pytest.mark.parametrize("as_label", AS_LABELS.values(), ids=AS_LABELS)
def test_labels_that_nothing_tells_are_read_once(as_label):
    dataset = counting(as_label)
    assert labels_of(dataset) == Y
    assert sorted(dataset.read) == list(range(10))


@pytest.mark.parametrize("name", ["targets", "labels", "_labels", "_y"])
@pytest.mark.parametrize(
    "told",
    [
        Y,
        tuple(Y),
        np.array(Y),
        torch.tensor(Y),
        torch.tensor(Y)[:, None],
        [torch.tensor(y) for y in Y],
    ],
    ids=["list", "tuple", "array", "tensor", "tensor [N, 1]", "list of tensors"],
)
def test_labels_that_are_told_are_not_read(name, told):
    dataset = counting(**{name: told})
    assert labels_of(dataset) == Y
    assert set(dataset.read) == {0, 5, 9}


@pytest.mark.parametrize(
    "told",
    [
        [4 - y for y in Y],  # of another numbering
        ["cat"] * 10,
        Y[:5],
        [float(y) for y in Y],
        [-y for y in Y],
        {"cat": 1},
        torch.eye(10),
        torch.tensor(3),
        None,
    ],
    ids=str,
)
def test_what_is_told_of_something_else_is_not_believed(told):
    assert labels_of(counting(targets=told)) == Y


@given(st.lists(st.integers(0, 9), min_size=1))
def test_wrapped_data_sets_tell_what_they_hold(rows):
    dataset = counting(targets=Y)
    expected = [Y[row] for row in rows]
    assert labels_of(Subset(dataset, rows)) == expected
    assert labels_of(Subset(dataset, torch.tensor(rows))) == expected
    both = ConcatDataset([Subset(dataset, rows), TensorDataset(X, torch.tensor(Y))])
    assert labels_of(Subset(both, range(len(rows)))) == expected
    assert labels_of(both) == expected + Y


def test_of_wrapped_data_sets_few_items_are_read():
    dataset = counting(targets=Y)
    labels_of(ConcatDataset([Subset(dataset, range(7)), dataset]))
    assert len(dataset.read) == 3
    bare = counting()
    assert labels_of(Subset(bare, [4, 2])) == [2, 3]
    assert set(bare.read) == {4, 2}


def test_a_target_transform_is_done_to_what_is_told(mnist_root):
    plain = MNIST(mnist_root, transform=ToTensor())
    turned = MNIST(mnist_root, transform=ToTensor(), target_transform=lambda y: 9 - y)
    assert labels_of(plain) == [i % 10 for i in range(20)]
    assert labels_of(turned) == [9 - i % 10 for i in range(20)]
    assert labels_of(Subset(turned, [3, 4])) == [6, 5]


def test_task_sets_of_continuum_tell_theirs():
    plain = TaskSet(X, Y, 1)
    moved = TaskSet(X, Y, 1, target_trsf=lambda y: y + 4)
    assert labels_of(plain) == Y
    assert labels_of(moved) == [y + 4 for y in Y]
    assert len(plain.read) == len(moved.read) == 3


def test_data_sets_of_avalanche_tell_their_current_labels():
    dataset = AvalancheDataset([counting()], data_attributes=[DataAttribute([0] * 10, "targets")])
    renamed = dataset.update_data_attribute("targets", Y)
    assert list(renamed.targets) != Y  # Avalanche 0.6.0 leaves the attribute what it was
    assert labels_of(renamed) == Y


def test_random_data_sets_keep_the_random_state():
    class Jittered(Counting):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + torch.randn(2) + np.random.rand(), y

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert labels_of(Jittered(X, Y)) == Y
    assert torch.equal(torch.get_rng_state(), state)
    fake = FakeData(size=4, image_size=(1, 2, 2), num_classes=3)
    assert labels_of(fake) == [int(fake[i][1]) for i in range(4)]


class Only(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.item


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (X[0], r"items must be \(x, y\), or \(x, y, task\), got Tensor"),
        ((X[0],), "got tuple of 1"),
        ({"x": X[0], "y": 1}, "got dict"),
        ((X[0], "cat"), "y must be a class label, a whole number >= 0, got 'cat'"),
        ((X[0], 1.0), "got 1.0"),
        ((X[0], -1), "got -1"),
        ((X[0], torch.ones(3)), "y must be a class label"),
        ((X[0], np.nan), "got nan"),
        ((X[0], None), "got None"),
        ((X[0], torch.tensor(0.5)), "y must be a class label"),
    ],
)
def test_items_without_a_class_label_are_refused(item, message):
    with pytest.raises(ValueError, match=message):
        labels_of(Only(item))
