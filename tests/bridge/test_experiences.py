"""What experiences and streams tell of tasks, however they are made."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, make_stream
from avalanche.benchmarks.scenarios.online import (
    split_continuous_linear_decay_stream,
    split_online_stream,
)
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.supervised import JointTraining, Naive
from tiny import class_stream, domain_stream, make_model, make_strategy
from torch.utils.data import TensorDataset

from avalanche_mgem.bridge.experiences import (
    classes_of,
    full_length,
    trained_together,
    whole_experience,
)


def data(y):
    return AvalancheDataset([TensorDataset(torch.randn(len(y), 6), y)])


def test_a_part_of_an_online_stream_is_of_the_experience_it_was_cut_from():
    scenario = domain_stream()
    for experience in scenario.train_stream:
        assert whole_experience(experience) is experience
        for part in split_online_stream([experience], experience_size=7):
            assert whole_experience(part) is experience


def test_a_part_of_a_blurry_stream_is_of_none():
    stream = split_continuous_linear_decay_stream(
        domain_stream().train_stream, 6, iters_per_virtual_epoch=2, beta=3, shuffle=True
    )
    assert [whole_experience(part) for part in stream] == [None] * 6


def test_the_length_of_a_slice_is_that_of_its_stream():
    stream = domain_stream().test_stream
    for part in (stream, stream[1:], stream[:1], stream[2:][:1]):
        assert full_length(part) == 3
        assert {full_length(experience.origin_stream) for experience in part} == {3}
    lazy = make_stream("lazy", (experience for experience in stream))
    assert full_length(lazy) is None


@pytest.mark.parametrize(("strategy", "count"), [(Naive, 1), (JointTraining, 3)])
def test_joint_training_trains_all_at_once(strategy, count):
    seen = []
    made = make_strategy(make_model(), strategy=strategy)
    event = made.train_dataset_adaptation

    def note(**kwargs):
        seen.append(len(trained_together(made)))
        event(**kwargs)

    made.train_dataset_adaptation = note
    made.train(domain_stream().train_stream)
    assert set(seen) == {count}


def test_classes_are_those_of_the_experience_or_of_its_samples():
    for experience in class_stream().train_stream:
        assert classes_of(experience) == set(experience.classes_in_this_experience)
    y = torch.tensor([4, 1, 1])
    plain = data(y)
    told = data(y)
    told.targets = y.tolist()
    tensors = data(y)
    tensors.targets = list(y)
    regression = data(y.float())
    regression.targets = y.float().tolist()
    stream = benchmark_from_datasets(train=[plain, told, tensors, regression]).train_stream
    assert [classes_of(e) for e in stream] == [None, {1, 4}, {1, 4}, None]
