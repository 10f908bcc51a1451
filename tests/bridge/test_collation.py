"""What makes batches in training makes them for whatever is measured besides."""

import pytest
import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedDataLoader,
    GroupBalancedInfiniteDataLoader,
    ReplayDataLoader,
    SingleDatasetDataLoader,
    TaskBalancedDataLoader,
)
from tiny import domain_stream
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torch.utils.data.sampler import WeightedRandomSampler

from avalanche_mgem.bridge.collation import batches_of, collate_of, view
from avalanche_mgem.bridge.fields import OneByOne


def own(samples):
    return ["own", *samples]


def of_data(samples):
    return ["of the data", *samples]


def data(collate_fn=of_data):
    plain = TensorDataset(torch.arange(6.0))
    return make_avalanche_dataset(plain, collate_fn=collate_fn)


class Wrapped:
    """A loader inside something that counts, or shows how far it is."""

    def __init__(self, loader):
        self.loader, self.count = loader, 0

    def __iter__(self):
        return iter(self.loader)


LOADERS = {
    "torch's": lambda d, **k: DataLoader(d, batch_size=2, **k),
    "weighted": lambda d, **k: DataLoader(
        d, batch_size=2, sampler=WeightedRandomSampler([1.0] * 6, 6), **k
    ),
    "of one data set": lambda d, **k: SingleDatasetDataLoader(d, batch_size=2, **k),
    "balanced": lambda d, **k: GroupBalancedDataLoader([d, d], batch_size=2, **k),
    "without an end": lambda d, **k: GroupBalancedInfiniteDataLoader([d, d], batch_size=2, **k),
    "with replay": lambda d, **k: ReplayDataLoader(d, d, batch_size=2, batch_size_mem=2, **k),
    "wrapped": lambda d, **k: Wrapped(DataLoader(d, batch_size=2, **k)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_loaders_own_function_comes_first(name):
    loader = LOADERS[name](data(), collate_fn=own)
    assert collate_of(loader, data()) is own


@pytest.mark.parametrize("name", ["of one data set", "balanced", "without an end", "with replay"])
def test_avalanches_loaders_take_that_of_the_data_set(name):
    assert collate_of(LOADERS[name](data()), data()) is of_data


def test_by_task_label():
    experience = domain_stream().train_stream[0]
    loader = TaskBalancedDataLoader(experience.dataset, batch_size=2)
    assert collate_of(loader, experience.dataset) is experience.dataset.collate_fn


def test_torchs_loader_does_not_know_that_of_the_data_set():
    """Which is what training without task labels uses."""
    assert collate_of(LOADERS["torch's"](data()), data()) is default_collate


@pytest.mark.parametrize("loader", [[], None, iter([1]), [[1], [2]]])
def test_without_a_loaders_it_is_the_data_sets_or_torchs(loader):
    assert collate_of(loader, data()) is of_data
    assert collate_of(loader, [1, 2]) is default_collate


def test_views():
    class Torchvisions(TensorDataset):
        train = True  # whether it is the training part

    plain = Torchvisions(torch.arange(2.0))
    assert view(plain, "train") is plain
    assert view([1], "eval") == [1]


def test_what_differs_in_size_goes_one_by_one_in_all_parts():
    def sample(length):
        return [torch.ones(length), length]

    same, other = [sample(2), sample(2)], [sample(3), sample(4)]
    together = batches_of([same, same], default_collate)
    assert not any(isinstance(batch, OneByOne) for batch in together)
    apart = batches_of([same, other], default_collate)
    assert [[len(one[0][0]) for one in batch] for batch in apart] == [[2, 2], [3, 4]]
    assert all(isinstance(batch, OneByOne) for batch in apart)
    single = batches_of([[sample(2)], [sample(3)]], default_collate)
    assert not any(isinstance(batch, OneByOne) for batch in single)


def test_what_makes_no_batch_at_all_is_an_error():
    for parts in ([[object()]], [[object(), object()]]):
        with pytest.raises(TypeError, match="default_collate"):
            batches_of(parts, default_collate)
