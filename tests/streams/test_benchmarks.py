"""Benchmarks of Avalanche's, however they were made, have all that training needs."""

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    CLStream,
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    dataset_benchmark,
    nc_benchmark,
    ni_benchmark,
    split_continuous_linear_decay_stream,
    split_online_stream,
    task_incremental_benchmark,
    tensors_benchmark,
)
from avalanche.benchmarks.scenarios import with_classes_timeline, with_task_labels
from avalanche.benchmarks.scenarios.supervised import (
    class_incremental_benchmark,
    new_instances_benchmark,
)
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    DataAttribute,
    TaskLabels,
    as_classification_dataset,
)
from data_sets import Counting, by_classes
from tiny import tiny_data
from torch.utils.data import TensorDataset

from avalanche_mgem.streams.benchmarks import complete_scenario

DATA = tiny_data()


def told(x, y):
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()
    return dataset


WHOLE = told(DATA.x_train, DATA.y_train), told(DATA.x_test, DATA.y_test)
PAIRS = by_classes(told)


def bare(pair, task):
    return [AvalancheDataset([each]) for each in pair]


def classified(pair, task):
    return [as_classification_dataset(each) for each in pair]


def with_tasks(pair, task):
    return [
        AvalancheDataset(
            [each],
            data_attributes=[
                DataAttribute(each.targets, "targets"),
                TaskLabels([task] * len(each)),
            ],
        )
        for each in pair
    ]


def from_datasets(kind):
    train, test = zip(*(kind(pair, i) for i, pair in enumerate(PAIRS)), strict=True)
    return benchmark_from_datasets(train=train, test=test)


def incremental():
    train, test = map(as_classification_dataset, WHOLE)
    return class_incremental_benchmark({"train": train, "test": test}, num_experiences=3, seed=1)


def lazy():
    streams = from_datasets(classified).streams
    return CLScenario(
        [CLStream(name, (each for each in stream)) for name, stream in streams.items()]
    )


CLASS = {
    "bare": lambda: from_datasets(bare),
    "classified": lambda: from_datasets(classified),
    "lazy": lazy,
    "class incremental": incremental,
    "nc": lambda: nc_benchmark(*WHOLE, n_experiences=3, task_labels=False, seed=1),
    "validation": lambda: benchmark_with_validation_stream(from_datasets(classified), 0.25),
    "datasets": lambda: dataset_benchmark(*map(list, zip(*PAIRS, strict=True))),
}
TASK = {
    "tasks": lambda: from_datasets(with_tasks),
    "with task labels": lambda: with_task_labels(from_datasets(with_tasks)),
    "timeline": lambda: with_classes_timeline(with_task_labels(from_datasets(with_tasks))),
    "task incremental": lambda: task_incremental_benchmark(from_datasets(classified)),
    "tensors": lambda: tensors_benchmark(
        *([d.tensors for d in part] for part in zip(*PAIRS, strict=True)), task_labels=[0, 1, 2]
    ),
    "nc": lambda: nc_benchmark(*WHOLE, n_experiences=3, task_labels=True, seed=1),
}
MAKERS = {**CLASS, **{f"{name}, by task": make for name, make in TASK.items()}}


@pytest.mark.parametrize("name", MAKERS)
def test_experiences_tell_classes_and_tasks(name):
    made = MAKERS[name]()
    complete = complete_scenario(made)
    by_task = name.endswith("by task")
    seen = set()
    for i, (train, test) in enumerate(
        zip(complete.train_stream, complete.test_stream, strict=True)
    ):
        seen |= set(train.classes_in_this_experience)
        assert train.classes_in_this_experience == sorted(set(train.dataset.targets))
        if name not in ("nc", "nc, by task"):
            assert train.classes_seen_so_far == sorted(seen)
        for each in (train, test):
            assert each.task_labels == [i if by_task else 0]
            assert int(each.dataset[0][2]) == each.task_labels[0]
        former = list(made.train_stream)[i].dataset
        assert torch.equal(former[1][0], train.dataset[1][0])
        assert int(former[1][1]) == int(train.dataset[1][1])
    assert [e.current_experience for e in complete.test_stream[1:]] == [1, 2]


@pytest.mark.parametrize("name", ["nc", "nc, by task"])
def test_what_is_complete_stays_itself(name):
    made = MAKERS[name]()
    assert complete_scenario(made) is made


def test_labels_of_tensors_are_whole_numbers():
    as_tensors = [
        AvalancheDataset(
            [Counting(part.tensors[0], part.targets, torch.tensor)],
            data_attributes=[DataAttribute([torch.tensor(y) for y in part.targets], "targets")],
        )
        for part in PAIRS[1]
    ]
    made = benchmark_from_datasets(train=as_tensors[:1], test=as_tensors[1:])
    assert complete_scenario(made).train_stream[0].classes_in_this_experience == [2, 3]


@pytest.mark.parametrize("make", [ni_benchmark, new_instances_benchmark])
def test_one_test_set_of_all_classes_is_that_of_each_experience(make):
    train, test = map(as_classification_dataset, WHOLE)
    complete = complete_scenario(make(train, test, 4, seed=1))
    assert len(complete.test_stream) == 4
    for experience in complete.test_stream:
        assert list(experience.dataset.targets) == WHOLE[1].targets
    assert sum(len(e.dataset) for e in complete.train_stream) == len(WHOLE[0])


def test_other_notes_of_experiences_stay():
    made = from_datasets(bare)
    made.train_stream[1].task_name = "birds"
    assert complete_scenario(made).train_stream[1].task_name == "birds"


def uneven(n_test):
    made = from_datasets(with_tasks)
    test = [each.dataset for each in made.test_stream][:n_test]
    return benchmark_from_datasets(train=[e.dataset for e in made.train_stream], test=test)


def online(name=None):
    made = from_datasets(classified)
    stream = split_online_stream(made.train_stream, 8, seed=0)
    stream.name = name or stream.name
    return CLScenario([stream, made.test_stream])


def blurry():
    made = from_datasets(classified)
    stream = split_continuous_linear_decay_stream(
        made.train_stream, 8, iters_per_virtual_epoch=1, beta=3, shuffle=True
    )
    stream.name = "train"
    return CLScenario([stream, made.test_stream])


def unlabelled():
    train = [bare(PAIRS[0], 0)[0], AvalancheDataset([TensorDataset(DATA.x_train)])]
    return benchmark_from_datasets(train=train, test=train[:1] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uneven(2), "as many test as training .* got 3 training and 2 test experiences"),
        (lambda: uneven(1), "got 3 training and 1 test experiences"),
        (lambda: uneven(0), "got 3 training and 0 test experiences"),
        (online, "train_online_stream is an online one; give the scenario that it was cut from"),
        (lambda: online("train"), "train_stream is an online one"),
        (blurry, "stream must have training experiences that are a task each, got a blurry one"),
        (lambda: 3, "must return an Avalanche scenario .* got int"),
        (lambda: CLScenario([]), "must return an Avalanche scenario .* got CLScenario"),
        (unlabelled, "stream: experience 1: items must be"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        complete_scenario(make())
