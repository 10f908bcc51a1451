"""A partition is one: disjoint, complete, in model order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avalanche_mgem.model.partition import (
    REST,
    PartitionCache,
    make_partition,
    restricted_parameters,
    without,
)


@st.composite
def models(draw):
    widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=5))
    layers = [nn.Linear(a, b, bias=draw(st.booleans())) for a, b in pairwise(widths)]
    model = nn.Sequential(*layers)
    for parameter in list(model.parameters())[1:]:
        parameter.requires_grad_(draw(st.booleans()))
    return model


def positions(slices):
    return [i for part in slices for i in range(part.start, part.stop)]


def size_of(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@given(models(), st.data())
def test_equal_blocks(model, data):
    count = data.draw(st.integers(1, size_of(model)))
    partition = make_partition(model, count)
    assert [i for s in partition.slices for i in positions(s)] == list(range(size_of(model)))
    sizes = [len(positions(s)) for s in partition.slices]
    assert len(sizes) == len(set(partition.names)) == count
    assert max(sizes) - min(sizes) <= 1
    assert partition.size == size_of(model)


@given(models(), st.sampled_from(["layer", "tensor"]))
def test_layers_and_tensors(model, groups):
    partition = make_partition(model, groups)
    assert [i for s in partition.slices for i in positions(s)] == list(range(size_of(model)))
    names = [name for name, _ in restricted_parameters(model)]
    expected = names if groups == "tensor" else list(dict.fromkeys(n.split(".")[0] for n in names))
    assert list(partition.names) == expected


@given(models(), st.data())
def test_patterns_in_any_order_name_the_same_positions(model, data):
    names = [name for name, _ in model.named_parameters()]
    owners = data.draw(st.lists(st.sampled_from("abc"), min_size=len(names), max_size=len(names)))
    groups = {o: [n for n, w in zip(names, owners, strict=True) if w == o] for o in set(owners)}
    by_pattern = make_partition(model, groups)
    by_callable = make_partition(model, lambda _: groups)
    assert by_pattern == by_callable
    parameters = restricted_parameters(model)
    start = 0
    for name, parameter in parameters:
        module = owners[names.index(name)]
        own = positions(by_pattern.slices[by_pattern.names.index(module)])
        assert set(range(start, start + parameter.numel())) <= set(own)
        start += parameter.numel()


def test_neighbouring_tensors_are_joined_and_others_are_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1))
    partition = make_partition(model, {"ends": ["0", "2.*"], "middle": ["1"]})
    assert partition.slices == ((slice(0, 6), slice(9, 11)), (slice(6, 9),))


def test_a_submodules_name_is_no_prefix_of_anothers():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(12)))
    partition = make_partition(model, {"one": ["1"]}, unassigned_parameters="free")
    assert partition.slices == ((slice(2, 4),),)


@pytest.mark.parametrize("unassigned", ["free", "module"])
def test_what_no_pattern_takes(unassigned):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    partition = make_partition(model, {"last": ["1"]}, unassigned_parameters=unassigned)
    assert partition.size == 9
    assert partition.names == (("last",) if unassigned == "free" else (REST, "last"))


def test_a_module_whose_parameters_are_all_frozen_is_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    partition = make_partition(model, {"first": ["0"], "last": ["1"]})
    assert partition.names == ("last",)
    with pytest.raises(ValueError, match="parameter_groups takes frozen parameters only"):
        make_partition(model, {"first": ["0"]}, unassigned_parameters="free")


def test_numpys_numbers_are_numbers():
    model = nn.Linear(2, 2)
    assert make_partition(model, np.int64(2)) == make_partition(model, 2)


def test_shared_parameters_come_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert make_partition(model, "layer").size == 9


@given(st.data())
def test_what_is_held_is_in_no_module(data):
    edges = sorted(data.draw(st.sets(st.integers(0, 30), min_size=2)))
    parts = [slice(a, b) for a, b in pairwise(edges)]
    modules = (tuple(parts[::2]), tuple(parts[1::2]))
    ends = sorted(data.draw(st.lists(st.integers(0, 30), max_size=6)))
    held = [slice(a, b) for a, b in zip(ends[::2], ends[1::2], strict=False)]
    left = without(modules, held)
    assert len(left) == len(modules)
    for module, rest in zip(modules, left, strict=True):
        assert positions(rest) == [i for i in positions(module) if i not in positions(held)]
        assert all(part.start < part.stop for part in rest)


def test_the_cache_knows_what_is_held():
    model, cache = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), PartitionCache()
    partition = cache.get(model, "layer", "error")
    assert cache.moving(partition, []) == partition.slices
    assert cache.moving(partition, [slice(0, 6)]) == ((), (slice(6, 12),))
    assert cache.moving(partition, [slice(0, 3)]) == ((slice(3, 6),), (slice(6, 12),))
    coarse = cache.get(model, 1, "error")
    assert cache.moving(coarse, [slice(0, 3)]) == ((slice(3, 12),),) or coarse is partition
