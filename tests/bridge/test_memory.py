"""Which samples the episodic memory keeps, and how it groups them."""

import copy
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, default_collate

from avalanche_mgem.bridge.memory import EpisodicMemory


class Numbered(Dataset):
    """Sample i is [i as a float vector, its label, an extra field, its task label]."""

    def __init__(self, labels, offset=0, task=3):
        self.targets = list(labels)
        self.offset, self.task = offset, task

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        number = self.offset + i
        return [torch.full((2,), float(number)), self.targets[i], -number, self.task]


def numbers(groups):
    """The numbers of the samples in each group."""
    return [[int(x) for x in group.batch[0][:, 0]] for group in groups]


labels_of_a_task = st.lists(st.integers(0, 4), min_size=1, max_size=40)
selections = st.sampled_from(["random", "class-balanced"])


@given(labels_of_a_task, st.integers(1, 20), st.integers(1, 8), selections, st.integers(0, 99))
def test_groups_are_disjoint_equal_and_complete(labels, size, groups, selection, seed):
    groups = min(groups, size)
    memory = EpisodicMemory(size, groups=groups, selection=selection, seed=seed)
    memory.observe_dataset(Numbered(labels))
    memory.close_task()
    kept = numbers(memory.closed_groups())
    flat = [n for group in kept for n in group]
    expected = min(size, len(labels))
    assert len(flat) == len(set(flat)) == expected
    assert set(flat) <= set(range(len(labels)))
    assert len(kept) == min(groups, expected)
    lengths = [len(group) for group in kept]
    assert max(lengths) - min(lengths) <= 1
    shares = [length / expected for length in lengths]
    assert [g.share for g in memory.closed_groups()] == pytest.approx(shares)


@given(labels_of_a_task, st.integers(1, 20), st.integers(0, 99))
def test_class_balanced_is_as_equal_as_the_classes_allow(labels, size, seed):
    memory = EpisodicMemory(size, selection="class-balanced", seed=seed)
    memory.observe_dataset(Numbered(labels))
    memory.close_task()
    kept = Counter(labels[n] for n in numbers(memory.closed_groups())[0])
    there = Counter(labels)
    most = max(kept.values())
    for label, count in there.items():
        assert kept[label] >= min(count, most - 1)


@given(labels_of_a_task, st.integers(1, 6), st.integers(0, 99))
def test_a_split_by_class_deals_the_classes(labels, groups, seed):
    memory = EpisodicMemory(40, groups=groups, split="class", seed=seed)
    memory.observe_dataset(Numbered(labels))
    memory.close_task()
    classes = [{labels[n] for n in group} for group in numbers(memory.closed_groups())]
    assert len(classes) == min(groups, len(set(labels)))
    assert sum(len(c) for c in classes) == len(set(labels))  # no class in two groups
    sizes = [len(c) for c in classes]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_a_task_in_parts_is_a_task(parts, size):
    memory = EpisodicMemory(size, seed=0)
    offset = 0
    for part in parts:
        memory.observe_dataset(Numbered([0] * part, offset))
        offset += part
        assert sum(map(len, numbers(memory.open_groups()))) == min(size, offset)
    memory.close_task()
    kept = numbers(memory.closed_groups())[0]
    assert len(set(kept)) == min(size, offset)
    assert set(kept) <= set(range(offset))


@pytest.mark.parametrize("parts", [1, 4])
def test_every_sample_is_kept_equally_often(parts):
    """200 memories of 5 from 20: each sample is expected in 50, give or take 6.1."""
    counts = Counter()
    for seed in range(200):
        memory = EpisodicMemory(5, seed=seed)
        for part in range(parts):
            size = 20 // parts
            memory.observe_dataset(Numbered([0] * size, part * size))
        memory.close_task()
        counts.update(numbers(memory.closed_groups())[0])
    assert len(counts) == 20
    assert all(abs(count - 50) < 5 * 6.2 for count in counts.values())


def test_every_field_and_the_task_label_are_kept():
    memory = EpisodicMemory(4, seed=0)
    memory.observe_dataset(Numbered([0, 1, 2, 3], task=7))
    memory.close_task()
    x, y, extra, task_labels = memory.closed_groups()[0].batch
    assert y.tolist() == x[:, 0].int().tolist() == (-extra).tolist()
    assert task_labels.tolist() == [7] * 4


def test_the_data_sets_own_collate_function_is_used():
    class Texts(Numbered):
        def __getitem__(self, i):
            return {"input_ids": list(range(i + 1)), "labels": i}

        def collate_fn(self, samples):
            longest = max(len(s["input_ids"]) for s in samples)
            rows = [s["input_ids"] + [0] * (longest - len(s["input_ids"])) for s in samples]
            return {
                "input_ids": torch.tensor(rows),
                "labels": torch.tensor([s["labels"] for s in samples]),
            }

    memory = EpisodicMemory(3, seed=0)
    memory.observe_dataset(Texts([0, 1, 2]))
    memory.close_task()
    batch = memory.closed_groups()[0].batch
    assert batch["input_ids"].shape == (3, 3)
    assert batch["labels"].tolist() == [0, 1, 2]


def noisy(x):
    """An augmentation that draws from every global random state."""
    return x + torch.rand(2) + np.random.random() + random.random()


def test_raw_samples_are_kept_and_nobodys_random_numbers_are_drawn():
    dataset = make_avalanche_dataset(
        Numbered(range(10)), transform_groups=_groups(train=noisy, evaluation=None)
    )
    memory = EpisodicMemory(10, seed=0)
    memory.observe_dataset(dataset)
    memory.close_task()
    x = memory.closed_groups()[0].batch[0]
    assert torch.equal(x, torch.arange(10.0)[:, None].expand(10, 2))


def noisy_collate(samples):
    """A collate function that draws, as masking words does."""
    random.random(), np.random.random(), torch.rand(1)
    return default_collate(samples)


def test_a_data_set_that_always_augments_draws_from_nobody():
    dataset = make_avalanche_dataset(
        Numbered(range(10)),
        transform_groups=_groups(train=noisy, evaluation=noisy),
        collate_fn=noisy_collate,
    )
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    memory = EpisodicMemory(10, seed=0)
    memory.observe_dataset(dataset)
    memory.close_task()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def _groups(train, evaluation):
    from avalanche.benchmarks.utils import TransformGroups

    return TransformGroups({"train": train, "eval": evaluation})


@given(st.lists(st.integers(1, 7), max_size=8), st.integers(1, 10), st.integers(0, 9))
def test_the_ring_holds_the_last_samples_of_a_pass(advances, size, seed):
    dataset, everything = Numbered(range(20)), EpisodicMemory(20, selection="ring", seed=seed)
    everything.start_pass(dataset)
    memory = EpisodicMemory(size, selection="ring", seed=seed)
    memory.start_pass(dataset)
    shown = []
    for n in advances:
        for one in (everything, memory):
            one.advance(n)
        now = numbers(everything.open_groups())[0]
        assert now[: len(shown)] == shown  # a pass goes on, and shows no sample twice
        shown = now
    memory.observe_dataset(Numbered([0] * 5, offset=50))  # the ring takes nothing but the pass
    memory.close_task()
    assert [n for group in numbers(memory.closed_groups()) for n in group] == shown[-size:]


def test_a_second_pass_moves_samples_to_the_end_and_keeps_each_once():
    memory = EpisodicMemory(8, selection="ring", seed=0)
    dataset = Numbered(range(6))
    for _ in range(3):
        memory.start_pass(dataset)
        memory.advance(4)
        memory.advance(4)
    memory.close_task()
    assert sorted(numbers(memory.closed_groups())[0]) == list(range(6))


def test_the_ring_by_class_and_raw():
    dataset = make_avalanche_dataset(
        Numbered([0, 1, 2, 0, 1, 2]), transform_groups=_groups(train=noisy, evaluation=None)
    ).update_data_attribute("targets", [0, 1, 2, 0, 1, 2])
    memory = EpisodicMemory(6, groups=3, split="class", selection="ring", seed=0)
    memory.start_pass(dataset)
    memory.advance(6)
    memory.close_task()
    assert sorted(sorted(group) for group in numbers(memory.closed_groups())) == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]


@pytest.mark.parametrize("selection", ["random", "class-balanced", "ring"])
def test_copies_and_pickles_go_on_as_the_original(selection):
    def go_on(memory, offset):
        dataset = Numbered(range(6), offset)
        memory.start_pass(dataset)
        memory.advance(4)
        memory.observe_dataset(dataset)

    memory = EpisodicMemory(4, groups=2, selection=selection, seed=0)
    go_on(memory, 0)
    others = [copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))]
    kept = []
    for one in (memory, *others):
        go_on(one, 6)
        one.close_task()
        kept.append(numbers(one.closed_groups()))
    assert kept[0] == kept[1] == kept[2]


def test_nothing_observed_is_no_memory():
    memory = EpisodicMemory(4, seed=0)
    memory.observe_dataset(Numbered([]))
    memory.close_task()
    assert len(memory) == 0
    assert memory.closed_groups() == memory.open_groups() == []


@pytest.mark.parametrize("arguments", [{"split": "class"}, {"selection": "class-balanced"}])
def test_classes_need_targets(arguments):
    class NoTargets(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return [torch.zeros(1), i, 0]

    memory = EpisodicMemory(2, seed=0, **arguments)
    with pytest.raises(ValueError, match=r"memory_split='class' .* need a data set with `targets`"):
        memory.observe_dataset(NoTargets())
