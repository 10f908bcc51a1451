import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from avalanche_mgem.streams import (
    ArrayData,
    permuted_stream,
    rotated_stream,
    split_stream,
)

BUILDERS = [permuted_stream, rotated_stream, split_stream]


def _tensors(experience):
    items = [experience.dataset[i] for i in range(len(experience.dataset))]
    xs, ys, tasks = zip(*items, strict=True)
    return torch.stack(xs), list(ys), list(tasks)


def _same(left, right):
    (x, *labels), (other_x, *other_labels) = _tensors(left), _tensors(right)
    return labels == other_labels and torch.equal(x, other_x)


def _same_streams(left, right):
    pairs = zip(
        [*left.train_stream, *left.test_stream],
        [*right.train_stream, *right.test_stream],
        strict=True,
    )
    return all(_same(*pair) for pair in pairs)


@given(
    n_experiences=st.integers(1, 4),
    train=st.none() | st.integers(1, 20),
    test=st.none() | st.integers(1, 10),
    seed=st.integers(0, 2**70),
)
@settings(deadline=None, max_examples=40)
def test_a_permuted_experience_is_one_bijection_of_the_values(
    distinct, n_experiences, train, test, seed
):
    stream = permuted_stream(
        distinct,
        n_experiences=n_experiences,
        train_per_experience=train,
        test_per_experience=test,
        seed=seed,
    )
    for experience, tested in zip(stream.train_stream, stream.test_stream, strict=True):
        (x, labels, _), (test_x, test_labels, _) = _tensors(experience), _tensors(tested)
        assert (len(x), len(test_x)) == (train or 20, test or 10)
        # The values of `distinct` number sample and position, so they tell where each came from.
        values = torch.cat([x, test_x]).flatten(1).long() - 1
        samples, positions = values // 24, values % 24
        assert torch.equal(samples, samples[:, :1].expand_as(samples))
        assert torch.equal(positions, positions[:1].expand_as(positions))
        assert sorted(positions[0].tolist()) == list(range(24))
        assert len(set(samples[:, 0].tolist())) == len(values)
        assert (samples[:, 0] % 5).tolist() == labels + test_labels


def test_every_experience_is_permuted_the_first_too(distinct):
    stream = permuted_stream(distinct, n_experiences=4)
    orders = [tuple(_tensors(each)[0][0].flatten().tolist()) for each in stream.train_stream]
    assert len({*orders, tuple(distinct.x_train[0].flatten().tolist())}) == 5


def test_flat_samples_are_permuted_and_stay_flat():
    data = ArrayData("flat", torch.rand(4, 7), torch.arange(4), torch.rand(2, 7), torch.arange(2))
    x = _tensors(permuted_stream(data, n_experiences=1).train_stream[0])[0]
    assert x.shape == (4, 7)
    assert torch.equal(x.sort(dim=1).values, data.x_train.sort(dim=1).values)


@pytest.mark.parametrize("count", [None, 7])
def test_a_shorter_permuted_stream_is_a_prefix(distinct, count):
    def build(n):
        return permuted_stream(distinct, n_experiences=n, train_per_experience=count, seed=3)

    for name in ("train", "test"):
        short, long = build(2).streams[name], build(5).streams[name]
        assert all(_same(short[i], long[i]) for i in range(2))


def test_the_number_of_samples_does_not_change_the_permutation(distinct):
    few = permuted_stream(distinct, n_experiences=2, train_per_experience=3)
    all_ = permuted_stream(distinct, n_experiences=2)
    for left, right in zip(few.test_stream, all_.test_stream, strict=True):
        assert _same(left, right)


@pytest.mark.parametrize("build", [permuted_stream, rotated_stream])
def test_training_samples_differ_and_test_samples_are_shared(digits, build):
    stream = build(digits, n_experiences=3, train_per_experience=40, test_per_experience=40)
    train = [tuple(each.dataset.targets) for each in stream.train_stream]
    test = [tuple(each.dataset.targets) for each in stream.test_stream]
    assert len(set(train)) == 3
    assert len(set(test)) == 1


@given(n_experiences=st.integers(1, 5), max_angle=st.floats(1, 360), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_an_angle_is_inside_its_part_of_the_range(n_experiences, max_angle, seed):
    bar = torch.zeros(1, 1, 41, 41)
    bar[..., 18:23, 20:] = 1  # points to the right: angle 0
    y = torch.zeros(1, dtype=torch.int64)
    stream = rotated_stream(
        ArrayData("bar", bar, y, bar, y),
        n_experiences=n_experiences,
        max_angle=max_angle,
        seed=seed,
    )
    part = max_angle / n_experiences
    for i, experience in enumerate(stream.train_stream):
        image = experience.dataset[0][0][0]
        across = torch.arange(-20, 21, dtype=torch.float32)
        x, y_up = (image.sum(0) * across).sum(), -(image.sum(1) * across).sum()
        angle = math.degrees(math.atan2(y_up, x)) % 360
        low, high = part * i - 2, part * (i + 1) + 2
        assert low <= angle <= high or low <= angle - 360 <= high or low <= angle + 360 <= high


def test_rotating_keeps_sample_and_label_together(digits):
    stream = rotated_stream(digits, n_experiences=1, max_angle=1e-9)
    x, labels, _ = _tensors(stream.train_stream[0])
    assert torch.allclose(x, digits.x_train, atol=1e-4)
    assert labels == digits.y_train.tolist()


def test_an_experience_is_rotated_by_one_angle(digits):
    stream = rotated_stream(digits, n_experiences=2, test_per_experience=5, max_angle=90, seed=1)
    whole = rotated_stream(digits, n_experiences=2, max_angle=90, seed=1)
    few, every = _tensors(stream.test_stream[1])[0], _tensors(whole.test_stream[1])[0]
    for image in few:
        assert any(torch.allclose(image, other, atol=1e-6) for other in every)
    angles = torch.linspace(45, 90, 451).tolist()
    best = min(
        float((rotate(digits.x_test, angle, InterpolationMode.BILINEAR) - every).abs().max())
        for angle in angles
    )
    assert best < 0.02


@given(n_experiences=st.integers(1, 10), seed=st.integers(0, 99), task_labels=st.booleans())
@settings(deadline=None, max_examples=20)
def test_classes_are_dealt_out_evenly_and_once(digits, n_experiences, seed, task_labels):
    stream = split_stream(digits, n_experiences=n_experiences, seed=seed, task_labels=task_labels)
    groups = [each.classes_in_this_experience for each in stream.train_stream]
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert groups == [each.classes_in_this_experience for each in stream.test_stream]
    if task_labels:
        assert groups == [list(range(size)) for size in sizes]
    else:
        assert sorted(label for group in groups for label in group) == list(range(10))
    assert sum(len(each.dataset) for each in stream.train_stream) == len(digits.x_train)
    assert sum(len(each.dataset) for each in stream.test_stream) == len(digits.x_test)


@pytest.mark.parametrize("task_labels", [False, True])
def test_classes_follow_the_order_given(distinct, task_labels):
    order = [3, 1, 4, 0, 2]
    stream = split_stream(distinct, n_experiences=2, class_order=order, task_labels=task_labels)
    for group, experience in zip([order[:3], order[3:]], stream.train_stream, strict=True):
        x, labels, _ = _tensors(experience)
        originals = (((x[:, 0, 0, 0] - 1) // 24) % 5).long().tolist()
        assert labels == [group.index(each) if task_labels else each for each in originals]
        assert set(originals) == set(group)


@given(order=st.permutations(range(5)), blank=st.sampled_from(["", " "]))
def test_a_class_order_may_be_text(distinct, order, blank):
    text = f",{blank}".join(map(str, order))
    streams = [split_stream(distinct, n_experiences=3, class_order=each) for each in (order, text)]
    assert _same_streams(*streams)


@pytest.mark.parametrize("text", ["", "0,1,two,3,4", "0 1 2 3 4", "0,1,,3,4"])
def test_a_class_order_that_is_no_list_of_numbers_is_refused(distinct, text):
    with pytest.raises(ValueError, match=rf"class_order as text must be .* got '{text}'"):
        split_stream(distinct, n_experiences=2, class_order=text)


@pytest.mark.parametrize("build", BUILDERS)
def test_uint8_streams_are_those_of_its_values(build):
    pixels = torch.arange(256).repeat(12).reshape(48, 1, 8, 8).to(torch.uint8)
    y = torch.arange(48) % 4
    streams = [
        build(ArrayData("pixels", x[:32], y[:32], x[32:], y[32:]), n_experiences=2)
        for x in (pixels, pixels.float() / 255)
    ]
    assert _same_streams(*streams)


@pytest.mark.parametrize("build", BUILDERS)
def test_image_size_is_that_of_the_samples_and_the_draws_stay(digits, build):
    sizes = {"n_experiences": 2, "train_per_experience": 20, "test_per_experience": 10}
    for name in ("train", "test"):
        pairs = zip(
            build(digits, **sizes).streams[name],
            build(digits, image_size=11, **sizes).streams[name],
            strict=True,
        )
        for plain, resized in pairs:
            x, *labels = _tensors(resized)
            assert x.shape[1:] == (1, 11, 11)
            assert labels == list(_tensors(plain)[1:])


@given(count=st.integers(1, 100), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_split_samples_are_even_over_the_classes_and_distinct(digits, count, seed):
    stream = split_stream(digits, n_experiences=5, train_per_experience=count, seed=seed)
    for experience in stream.train_stream:
        labels = list(experience.dataset.targets)
        assert len(labels) == count
        assert np.ptp([labels.count(c) for c in experience.classes_in_this_experience]) <= 1
        assert len(np.unique(_tensors(experience)[0].flatten(1).numpy(), axis=0)) >= count - 1


@pytest.mark.parametrize("build", BUILDERS)
def test_a_seed_repeats_and_another_differs(distinct, build):
    def streams(seed):
        return build(distinct, n_experiences=2, train_per_experience=5, seed=seed)

    assert _same_streams(streams(0), streams(0))
    assert not _same_streams(streams(0), streams(1))


@pytest.mark.parametrize("build", BUILDERS)
def test_the_global_random_state_is_neither_read_nor_moved(distinct, build):
    streams = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
        streams.append(build(distinct, n_experiences=2, train_per_experience=4))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tobytes() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert _same_streams(*streams)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("name", ["n_experiences", "train_per_experience", "test_per_experience"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2"])
def test_sizes_must_be_positive_integers(distinct, build, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got {value!r}"):
        build(distinct, **{"n_experiences": 2, name: value})


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("seed", [-1, 1.0, None, False])
def test_a_seed_must_be_an_integer(distinct, build, seed):
    with pytest.raises(ValueError, match=f"seed must be a whole number >= 0, got {seed}"):
        build(distinct, n_experiences=2, seed=seed)


@pytest.mark.parametrize("build", [permuted_stream, rotated_stream])
@pytest.mark.parametrize(("name", "there"), [("train", 20), ("test", 10)])
def test_more_samples_than_there_are_names_both_numbers(distinct, build, name, there):
    name = f"{name}_per_experience"
    with pytest.raises(ValueError, match=f"{name}={there + 1} is more .* at most {there}"):
        build(distinct, n_experiences=2, **{name: there + 1})


@pytest.mark.parametrize(("name", "there"), [("train", 8), ("test", 4)])
def test_more_samples_than_an_experience_has_names_it(distinct, name, there):
    name = f"{name}_per_experience"
    message = f"{name}={there + 1} is more than experience 1 has: at most {there}"
    with pytest.raises(ValueError, match=message):
        split_stream(distinct, n_experiences=2, **{name: there + 1})


@pytest.mark.parametrize("max_angle", [0, -90.0, math.inf, math.nan, True, "90"])
def test_max_angle_must_be_finite_and_positive(distinct, max_angle):
    with pytest.raises(
        ValueError, match=f"max_angle must be a finite number > 0, got {max_angle!r}"
    ):
        rotated_stream(distinct, n_experiences=2, max_angle=max_angle)


def test_flat_samples_cannot_be_rotated():
    data = ArrayData("flat", torch.rand(4, 7), torch.arange(4), torch.rand(2, 7), torch.arange(2))
    with pytest.raises(ValueError, match=r"data must hold images .*'flat' have shape \(7,\)"):
        rotated_stream(data, n_experiences=2)


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4.0]]
)
def test_class_order_must_be_a_permutation(distinct, order):
    with pytest.raises(ValueError, match=r"class_order must .* of the classes 0\.\.4"):
        split_stream(distinct, n_experiences=2, class_order=order)


def test_a_split_needs_a_class_for_each_experience(distinct):
    with pytest.raises(ValueError, match="n_experiences=6 is more than the 5 classes"):
        split_stream(distinct, n_experiences=6)


def test_a_split_needs_test_samples_in_each_experience():
    x, y = torch.rand(4, 3), torch.arange(4)
    data = ArrayData("partly", x, y, x[:3], y[:3])
    with pytest.raises(ValueError, match=r"data has no test samples of the classes \[3\]"):
        split_stream(data, n_experiences=4, class_order=[0, 1, 2, 3])
