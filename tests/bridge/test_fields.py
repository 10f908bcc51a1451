"""Minibatches, moved, cut and joined as whatever they are."""

import pickle
from typing import NamedTuple

import pytest
import torch

from avalanche_mgem.bridge.fields import OneByOne, joined, own_storage, samples_of, to_device


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


KINDS = [list, tuple, lambda pair: Pair(*pair), lambda pair: dict(zip("xy", pair, strict=True))]


def fields_of(batch):
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_batch_is_of_the_same_kind(kind):
    batch = kind([torch.zeros(1), torch.ones(1)])
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert all(field.is_meta for field in fields_of(moved))


def test_nested_batches_move_whole():
    batch = {"x": torch.zeros(1), "more": [torch.ones(2), "text"]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].is_meta
    assert moved["more"][0].is_meta
    assert moved["more"][1] == "text"
    assert not batch["x"].is_meta


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_joined_can_be_cut_again(kind):
    batches = [kind([torch.randn(3, 2), torch.randint(9, (3,))]) for _ in range(4)]
    whole = joined(batches)
    assert type(whole) is type(batches[0])
    for at, batch in enumerate(batches):
        part = samples_of(whole, slice(3 * at, 3 * at + 3), 12)
        assert type(part) is type(batch)
        for own, cut in zip(fields_of(batch), fields_of(part), strict=True):
            assert torch.equal(own, cut)


def test_samples_are_taken_by_their_positions():
    x, y = samples_of([torch.arange(5), torch.arange(5) * 2], torch.tensor([4, 1]), 5)
    assert (x.tolist(), y.tolist()) == ([4, 1], [8, 2])


@pytest.mark.parametrize("batch", [[torch.ones(3)], [torch.tensor(1.0)], ["text"], [[1, 2, 3, 4]]])
def test_a_field_without_an_entry_for_each_sample_is_refused(batch):
    with pytest.raises(ValueError, match="has a field of"):
        samples_of(batch, slice(0, 2), 4)


@pytest.mark.parametrize("other", [torch.ones(2, 4), torch.ones(2, 3).int()])
def test_samples_of_different_shapes_are_not_joined(other):
    with pytest.raises(ValueError, match="differ"):
        joined([[torch.ones(2, 3)], [other]])


def test_a_part_of_a_large_tensor_can_be_kept_small():
    part = [torch.zeros(1000, 10)[:5], torch.ones(5)]
    own = own_storage(part)
    assert torch.equal(own[0], part[0])
    assert own[1] is part[1]
    assert len(pickle.dumps(own)) < len(pickle.dumps(part)) / 10


def one_by_one():
    return OneByOne([[torch.full((1, length), length)] for length in (2, 3, 4)])


def test_samples_that_go_one_by_one_move_and_are_chosen_as_such():
    batch = one_by_one()
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is OneByOne
    assert all(one[0].is_meta for one in moved)
    for chosen, lengths in ((slice(1, 3), [3, 4]), (torch.tensor([2, 0]), [4, 2])):
        part = samples_of(batch, chosen, 3)
        assert type(part) is OneByOne
        assert [one[0].shape[1] for one in part] == lengths
    again = pickle.loads(pickle.dumps(own_storage(batch)))
    assert type(again) is OneByOne
    assert len(again) == 3
    with pytest.raises(ValueError, match="the samples differ in size"):
        joined([[torch.ones(1, 2)], batch])
