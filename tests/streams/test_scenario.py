import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from avalanche_mgem.streams import permuted_stream, rotated_stream, split_stream

KINDS = pytest.mark.parametrize("build", [permuted_stream, rotated_stream, split_stream])
TASK_LABELS = pytest.mark.parametrize("task_labels", [False, True])


def _batches(stream):
    return [
        batch
        for part in (stream.train_stream, stream.test_stream)
        for experience in part
        for batch in DataLoader(
            experience.dataset, batch_size=7, generator=torch.Generator().manual_seed(0)
        )
    ]


@KINDS
@TASK_LABELS
def test_items_are_sample_class_and_task_label(digits, build, task_labels):
    stream = build(digits, n_experiences=3, task_labels=task_labels, test_per_experience=30)
    for part in (stream.train_stream, stream.test_stream):
        assert len(part) == 3
        for i, experience in enumerate(part):
            task = i if task_labels else 0
            x, y, label = experience.dataset[5]
            assert (x.dtype, x.shape) == (torch.float32, (1, 8, 8))
            assert (y, label) == (experience.dataset.targets[5], task)
            assert set(experience.dataset.targets_task_labels) == {task}
            assert (experience.task_label, experience.task_labels) == (task, [task])


@KINDS
@TASK_LABELS
def test_class_timelines_are_sorted_lists_of_what_is_there(digits, build, task_labels):
    stream = build(digits, n_experiences=4, train_per_experience=30, task_labels=task_labels)
    for part in (stream.train_stream, stream.test_stream):
        classes = [set(each.dataset.targets) for each in part]
        for i, experience in enumerate(part):
            so_far = set().union(*classes[: i + 1])
            assert experience.classes_in_this_experience == sorted(classes[i])
            assert experience.previous_classes == sorted(set().union(*classes[:i]))
            assert experience.classes_seen_so_far == sorted(so_far)
            assert experience.future_classes == sorted(set().union(*classes) - so_far)


@KINDS
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))]
)
def test_streams_can_be_copied_and_pickled(digits, build, clone):
    stream = build(digits, n_experiences=2, train_per_experience=20, test_per_experience=20)
    for batch, cloned in zip(_batches(stream), _batches(clone(stream)), strict=True):
        for left, right in zip(batch, cloned, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("build", [permuted_stream, split_stream])
def test_the_samples_are_shared_by_all_experiences(digits, build):
    sizes = [len(pickle.dumps(build(digits, n_experiences=n))) for n in (1, 10)]
    samples = digits.x_train.numel() * 4
    assert sizes[1] < sizes[0] + samples


@KINDS
def test_building_leaves_the_data_as_it_was(distinct, build):
    before = copy.deepcopy((distinct.x_train, distinct.y_train, distinct.x_test, distinct.y_test))
    _batches(build(distinct, n_experiences=2, task_labels=True))
    after = (distinct.x_train, distinct.y_train, distinct.x_test, distinct.y_test)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
