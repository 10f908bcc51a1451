"""Scenarios of pairs of anybody's data sets."""

import pickle

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, make_avalanche_dataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from data_sets import Counting, TaskSet, by_classes
from tiny import make_model, make_strategy, tiny_data, train
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import Lambda, ToTensor

from avalanche_mgem.checkpoint.samples import fingerprint_of
from avalanche_mgem.streams import scenario_from_datasets, split_stream

DATA = tiny_data()


def scenario(pairs, **arguments):
    return scenario_from_datasets(*zip(*pairs, strict=True), **arguments)


@pytest.mark.parametrize("kind", [Counting, TaskSet, TensorDataset])
@pytest.mark.parametrize("task_labels", [False, True, [2, 0, 2]])
def test_it_is_the_stream_that_ours_makes(kind, task_labels):
    made = scenario(by_classes(kind), task_labels=task_labels)
    ours = split_stream(DATA, n_experiences=3, class_order=range(6))
    for name in ("train", "test"):
        for i, (experience, expected) in enumerate(
            zip(made.streams[name], ours.streams[name], strict=True)
        ):
            task = {False: 0, True: i}.get(task_labels) if isinstance(task_labels, bool) else None
            task = task_labels[i] if task is None else task
            assert (experience.task_label, experience.task_labels) == (task, [task])
            assert experience.current_experience == i
            for attribute in (
                *("classes_in_this_experience", "previous_classes"),
                *("classes_seen_so_far", "future_classes"),
            ):
                assert getattr(experience, attribute) == getattr(expected, attribute)
                assert isinstance(getattr(experience, attribute), list)
            assert list(experience.dataset.targets) == list(expected.dataset.targets)
            for item, ours_item in zip(experience.dataset, expected.dataset, strict=True):
                assert torch.equal(item[0], ours_item[0])
                assert item[1:] == [ours_item[1], task]
                assert type(item[1]) is int


def test_it_trains_as_our_own_does():
    weights = []
    for stream in (
        scenario(by_classes()),
        split_stream(DATA, n_experiences=3, class_order=range(6)),
    ):
        torch.manual_seed(0)
        strategy = make_strategy(make_model())
        train(strategy, stream.train_stream)
        weights.append([p.detach() for p in strategy.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_samples_are_read_when_they_are_needed():
    pairs = by_classes()
    for dataset in (each for pair in pairs for each in pair):
        dataset.targets = dataset.y.tolist()
    made = scenario(pairs)
    assert max(len(each.read) for pair in pairs for each in pair) <= 4
    made.train_stream[0].dataset[3]
    assert pairs[0][0].read[-1] == 3


def test_torchvision_data_sets_and_what_wraps_them(mnist_root, tmp_path):
    digits = [MNIST(mnist_root, train=t, transform=ToTensor()) for t in (True, False)]
    rows = [[i for i in range(20) if i % 10 < 5], [i for i in range(20) if i % 10 >= 5]]
    train_sets = [Subset(digits[0], part) for part in rows]
    test_sets = [Subset(digits[1], range(5)), ConcatDataset([Subset(digits[1], range(5, 10))])]
    made = scenario_from_datasets(train_sets, test_sets, task_labels=True)
    for i in range(2):
        classes = list(range(5 * i, 5 * i + 5))
        assert made.train_stream[i].classes_in_this_experience == classes
        assert made.test_stream[i].classes_in_this_experience == classes
    x, y, task = made.train_stream[1].dataset[2]
    assert torch.equal(x, digits[0][rows[1][2]][0])
    assert (y, task, x.dtype) == (7, 1, torch.float32)


@pytest.mark.parametrize(
    ("as_input", "dtype"),
    [
        (lambda x: x.double(), torch.float32),
        (lambda x: x.half(), torch.float32),
        (lambda x: x.numpy(), torch.float32),
        (lambda x: x.double().numpy(), torch.float32),
        (lambda x: x.long(), torch.int64),
    ],
)
def test_inputs_are_tensors_of_one_dtype(as_input, dtype):
    pairs = [
        (
            Counting([as_input(x) for x in part], [0] * 4),
            Counting([as_input(x) for x in part], [0] * 4),
        )
        for part in (DATA.x_train[:4], DATA.x_train[4:8])
    ]
    x = scenario(pairs).train_stream[0].dataset[1][0]
    assert x.dtype == dtype
    torch.testing.assert_close(x, DATA.x_train[1].to(dtype), atol=1e-2, rtol=1e-2)


def test_lists_and_generators_of_pairs_will_do():
    items = [(x, y) for x, y in zip(DATA.x_train[:8], DATA.y_train[:8], strict=True)]
    made = scenario_from_datasets((items for _ in range(2)), [items] * 2)
    assert len(made.train_stream) == len(made.test_stream) == 2
    assert list(made.train_stream[1].dataset.targets) == DATA.y_train[:8].tolist()


def test_data_sets_of_avalanche_keep_their_transforms():
    groups = TransformGroups({"train": (Lambda(lambda x: x + 1), None), "eval": (None, None)})
    part = make_avalanche_dataset(Counting(DATA.x_train, DATA.y_train), transform_groups=groups)
    assert isinstance(part, AvalancheDataset)
    data = scenario_from_datasets([part], [part]).train_stream[0].dataset
    assert torch.equal(data.train()[0][0], DATA.x_train[0] + 1)
    assert torch.equal(data.eval()[0][0], DATA.x_train[0])
    assert list(data.targets) == DATA.y_train.tolist()


def test_a_collate_function_stays():
    def collate(samples):
        return [len(samples)]

    pairs = by_classes()
    for dataset in (each for pair in pairs for each in pair):
        dataset.collate_fn = collate
    assert scenario(pairs).train_stream[0].dataset.collate_fn is collate


def test_scenarios_are_pickled_and_read_by_workers():
    again = pickle.loads(pickle.dumps(scenario(by_classes())))
    assert again.train_stream[1].classes_in_this_experience == [2, 3]


def test_a_checkpoint_does_not_read_a_users_samples():
    dataset = scenario(by_classes()).train_stream[0].dataset
    (part,) = {id(d): d for d in dataset._datasets}.values()
    part.dataset.read.clear()
    first = fingerprint_of(part)
    assert part.dataset.read == []
    part.dataset.x[0] += 1
    assert fingerprint_of(part) != first


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


ONE = TensorDataset(DATA.x_train, DATA.y_train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": ONE},
            r"train must be a list of data sets, .* got one TensorDataset: take \[tra",
        ),
        ({"test": []}, "test must hold at least one data set"),
        ({"train": 3}, "train must be a list of data sets, got 3"),
        (
            {"test": [ONE]},
            r"as many data sets, .* got 2 and 1; one test set for all: \[test\] \* 2",
        ),
        ({"train": [ONE, Endless()]}, r"train\[1\] \(Endless\) must be a data set with a length"),
        ({"test": [Subset(ONE, []), ONE]}, r"test\[0\] \(Subset\) must be .* a length >= 1"),
        ({"train": [ONE, 5]}, r"train\[1\] \(int\) must be a data set"),
        ({"train": [ONE, DATA.x_train]}, r"train\[1\] \(Tensor\) must be a data set"),
        (
            {"train": [ONE, TensorDataset(DATA.x_train)]},
            r"train\[1\] \(TensorDataset\): items must be .* tuple of 1",
        ),
        (
            {"train": [Counting(["a b"], [1]), ONE]},
            r"train\[0\] \(Counting\): x must be a tensor or an array, got str: .* ToTensor",
        ),
        (
            {"test": [ONE, Counting(DATA.x_train.to(torch.uint8), DATA.y_train)]},
            r"test\[1\] .* x must be scaled floats, got uint8: .*scale=True",
        ),
        ({"train": [ONE, Counting(DATA.x_train, DATA.y_train, float)]}, "y must be a class label"),
        ({"task_labels": [0]}, "task_labels must be .*, of which there are 2"),
        ({"task_labels": [0, -1]}, "task_labels must be .* a task label >= 0 for each experience"),
        ({"task_labels": [0, 1.5]}, "task_labels must be"),
        ({"task_labels": [True, False]}, "task_labels must be"),
        ({"task_labels": "01"}, "task_labels must be"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        scenario_from_datasets(**{"train": [ONE, ONE], "test": [ONE, ONE], **changes})


def test_labels_that_change_are_told_when_they_are_read():
    pairs = by_classes()
    pairs[0][0].targets = pairs[0][0].y.tolist()
    data = scenario(pairs).train_stream[0].dataset
    pairs[0][0].y[1] = 5
    data[0]
    with pytest.raises(ValueError, match=r"item 1 of Counting has the label 5, but .* say 1"):
        data[1]
