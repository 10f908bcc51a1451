import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_mgem.streams import ArrayData, split_stream
from avalanche_mgem.streams.vision.correlated import correlated_stream

N_CLASSES, PER_CLASS = 12, 9


@pytest.fixture(scope="module")
def numbered():
    """Samples whose first value is their number; the last two of each class are for test."""
    number = torch.arange(N_CLASSES * (PER_CLASS + 2))
    x = torch.stack([number.float(), torch.zeros(len(number))], dim=1)
    y, test = number % N_CLASSES, number >= N_CLASSES * PER_CLASS
    return ArrayData("numbered", x[~test], y[~test], x[test], y[test])


def _numbers(experience):
    items = [experience.dataset[i] for i in range(len(experience.dataset))]
    return [int(item[0][0]) for item in items], [item[1] for item in items], {i[2] for i in items}


def _groups(stream):
    """The classes of each experience's samples by what the samples are, not by their labels."""
    return [{number % N_CLASSES for number in _numbers(each)[0]} for each in stream]


def _same_streams(left, right):
    return all(
        [_numbers(each) for each in left.streams[name]]
        == [_numbers(each) for each in right.streams[name]]
        for name in ("train", "test")
    )


@given(
    n=st.integers(1, 5),
    size=st.integers(1, N_CLASSES),
    share=st.sampled_from([0, 0.2, 0.25, 1 / 3, 0.5, 0.6, 0.75, 1]) | st.floats(0, 1),
    seed=st.integers(0, 2**70),
    task_labels=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_experiences_share_classes_and_no_training_sample(
    numbered, n, size, share, seed, task_labels
):
    arguments = {
        "n_experiences": n,
        "classes_per_experience": size,
        "shared_classes": share,
        "seed": seed,
        "task_labels": task_labels,
    }
    shared = share * size
    shared = {math.floor(shared + 0.5), math.ceil(shared - 0.5)}
    if size + (n - 1) * (size - min(shared)) > N_CLASSES:
        with pytest.raises(ValueError, match=f"classes_per_experience={size} .* 'numbered' has 12"):
            correlated_stream(numbered, **arguments)
        return
    stream = correlated_stream(numbered, **arguments)
    groups = _groups(stream.train_stream)
    assert [len(group) for group in groups] == [size] * n
    assert {len(a & b) for a, b in pairwise(groups)} <= shared
    used = [number for each in stream.train_stream for number in _numbers(each)[0]]
    assert len(set(used)) == len(used)
    for i, (train, test) in enumerate(zip(stream.train_stream, stream.test_stream, strict=True)):
        numbers, labels, tasks = _numbers(train)
        per_class = np.bincount([each % N_CLASSES for each in numbers])
        assert np.ptp(per_class[per_class > 0]) == 0
        assert tasks == {i if task_labels else 0}
        classes = set(range(size)) if task_labels else groups[i]
        assert set(labels) == set(train.classes_in_this_experience) == classes
        assert len(set(zip((each % N_CLASSES for each in numbers), labels, strict=True))) == size
        tested = _numbers(test)[0]
        assert sorted(tested) == sorted(
            each for each in range(108, 132) if each % N_CLASSES in groups[i]
        )


def test_a_half_of_an_odd_number_stays_for_two_experiences(numbered):
    stream = correlated_stream(
        numbered, n_experiences=3, classes_per_experience=3, class_order=list(range(N_CLASSES))
    )
    assert _groups(stream.train_stream) == [{0, 1, 2}, {2, 3, 4}, {4, 5, 6}]
    assert [len(each.dataset) for each in stream.train_stream] == [15, 12, 15]


def test_classes_follow_the_order_and_are_numbered_by_it(numbered):
    order = [5, 3, 1, 0, 2, 4, 6, 7, 8, 9, 10, 11]
    stream = correlated_stream(
        numbered,
        n_experiences=3,
        classes_per_experience=4,
        shared_classes=0.75,
        class_order=",".join(map(str, order)),
        task_labels=True,
    )
    for i, experience in enumerate(stream.test_stream):
        numbers, labels, _ = _numbers(experience)
        assert [order[i + label] for label in labels] == [each % N_CLASSES for each in numbers]


@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize("count", [None, 7])
def test_sharing_nothing_is_a_split(numbered, task_labels, count):
    arguments = {
        "n_experiences": 4,
        "train_per_experience": count,
        "test_per_experience": count and 4,
        "seed": 5,
        "task_labels": task_labels,
    }
    assert _same_streams(
        correlated_stream(numbered, shared_classes=0, **arguments),
        split_stream(numbered, **arguments),
    )


def test_sharing_everything_deals_the_samples_of_the_same_classes(numbered):
    stream = correlated_stream(numbered, n_experiences=3, shared_classes=1.0)
    assert _groups(stream.train_stream) == [set(range(N_CLASSES))] * 3
    used = [number for each in stream.train_stream for number in _numbers(each)[0]]
    assert sorted(used) == list(range(N_CLASSES * PER_CLASS))


@given(n=st.integers(1, 8), share=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
@settings(deadline=None, max_examples=30)
def test_by_default_experiences_have_the_most_classes_there_are(numbered, n, share):
    stream = correlated_stream(numbered, n_experiences=n, shared_classes=share)
    size = len(_groups(stream.train_stream)[0])
    for more in range(size + 1, N_CLASSES + 1):
        with pytest.raises(ValueError, match=r"needs \d+ classes"):
            correlated_stream(
                numbered, n_experiences=n, shared_classes=share, classes_per_experience=more
            )


@pytest.mark.parametrize("count", [None, 8])
def test_a_shorter_stream_is_a_prefix(numbered, count):
    short, long = (
        correlated_stream(
            numbered,
            n_experiences=n,
            classes_per_experience=4,
            train_per_experience=count,
            seed=2,
        )
        for n in (3, 5)
    )
    for name in ("train", "test"):
        pairs = zip(short.streams[name], long.streams[name], strict=False)
        assert all(_numbers(left) == _numbers(right) for left, right in pairs)


@given(count=st.integers(1, 16), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_samples_are_drawn_evenly_from_the_classes(numbered, count, seed):
    stream = correlated_stream(
        numbered,
        n_experiences=4,
        classes_per_experience=4,
        train_per_experience=count,
        test_per_experience=min(count, 8),
        seed=seed,
    )
    for experience in stream.train_stream:
        labels = _numbers(experience)[1]
        assert len(labels) == count
        assert np.ptp([labels.count(c) for c in _groups([experience])[0]]) <= 1
    assert {len(each.dataset) for each in stream.test_stream} == {min(count, 8)}


def test_images_are_resized_and_stay_uint8_below():
    x = torch.randint(0, 256, (12, 1, 4, 4)).to(torch.uint8)
    data = ArrayData("images", x, torch.arange(12) % 3, x, torch.arange(12) % 3)
    stream = correlated_stream(data, n_experiences=2, image_size=6)
    image = stream.train_stream[0].dataset[0][0]
    assert image.shape == (1, 6, 6)
    assert torch.equal((image * 255).round() / 255, image)


def test_a_seed_repeats_another_differs_and_no_other_state_counts(numbered):
    streams = []
    for seed in (1, 1, 2):
        random.seed(len(streams))
        np.random.seed(len(streams))
        torch.manual_seed(len(streams))
        before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
        streams.append(correlated_stream(numbered, n_experiences=3, seed=seed))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tobytes() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert _same_streams(*streams[:2])
    assert not _same_streams(*streams[1:])


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan, True, "0.5", None])
def test_a_share_is_between_0_and_1(numbered, share):
    with pytest.raises(ValueError, match=f"shared_classes .*got {share!r}"):
        correlated_stream(numbered, n_experiences=2, shared_classes=share)


@pytest.mark.parametrize("name", ["n_experiences", "classes_per_experience"])
@pytest.mark.parametrize("value", [0, -2, 1.0, True])
def test_sizes_must_be_positive_integers(numbered, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got {value!r}"):
        correlated_stream(numbered, **{"n_experiences": 2, name: value})


def test_too_few_classes_names_all_that_decides(numbered):
    message = (
        r"classes_per_experience=6 in n_experiences=4 with shared_classes=0.5 "
        r"\(each 3 of the one before\) needs 15 classes, but 'numbered' has 12"
    )
    with pytest.raises(ValueError, match=message):
        correlated_stream(numbered, n_experiences=4, classes_per_experience=6)
    with pytest.raises(ValueError, match=r"n_experiences=13 with shared_classes=0.5 needs more"):
        correlated_stream(numbered, n_experiences=13)


def test_too_few_samples_names_the_class(numbered):
    message = r"data has 9 train samples of class 0, which up to 10 experiences share"
    with pytest.raises(ValueError, match=message):
        correlated_stream(numbered, n_experiences=10, shared_classes=1.0)
    with pytest.raises(ValueError, match=r"train_per_experience=49 .* experience 0 has: at most"):
        correlated_stream(
            numbered, n_experiences=2, classes_per_experience=8, train_per_experience=49
        )


def test_an_experience_needs_test_samples():
    x, y = torch.rand(8, 3), torch.arange(8) % 4
    data = ArrayData("partly", x, y, x[:2], y[:2])
    with pytest.raises(ValueError, match=r"data has no test samples of the classes \[2, 3\]"):
        correlated_stream(data, n_experiences=3, classes_per_experience=2, class_order=[0, 1, 2, 3])
