import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import TransformGroups, as_classification_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset
from torchvision.transforms import RandomHorizontalFlip
from torchvision.transforms.functional import gaussian_blur

from avalanche_mgem.streams import (
    ArrayData,
    domains_stream,
    permuted_stream,
    rotated_stream,
    split_stream,
)
from avalanche_mgem.streams.vision.correlated import correlated_stream
from avalanche_mgem.streams.vision.corruption_names import (
    CORRUPTIONS,
    Corruption,
    parse_corruptions,
    take_off_corruption,
)
from avalanche_mgem.streams.vision.corruptions import applied, corrupted
from avalanche_mgem.streams.vision.images import unit_range

BUILDERS = [permuted_stream, rotated_stream, split_stream, correlated_stream]
TIMELINE = ("classes_in_this_experience", "previous_classes", "future_classes")


@pytest.fixture(scope="module")
def photos():
    """Images [3, 9, 7] of four classes, twelve of them for test."""
    pixels = torch.randint(0, 256, (36, 3, 9, 7), generator=torch.Generator().manual_seed(0))
    x, y = pixels.to(torch.uint8), torch.arange(36) % 4
    return ArrayData("photos", x[:24], y[:24], x[24:], y[24:])


@pytest.fixture(scope="module")
def greys():
    """Four experiences of 20 equal images [1, 24, 24] of middle grey."""
    x, y = torch.full((80, 1, 24, 24), 0.5), torch.arange(80) % 4
    return split_stream(ArrayData("greys", x, y, x, y), n_experiences=4)


def _x(experience):
    return torch.stack([experience.dataset[i][0] for i in range(len(experience.dataset))])


def _labels(experience):
    return [tuple(experience.dataset[i][1:]) for i in range(len(experience.dataset))]


def _both(stream):
    return [*stream.train_stream, *stream.test_stream]


def _all(stream):
    return torch.cat([_x(each).flatten() for each in _both(stream)])


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("task_labels", [False, True])
def test_only_pixels_change_and_they_are_bytes(photos, build, task_labels):
    clean = build(photos, n_experiences=2, task_labels=task_labels)
    for plain, changed in zip(_both(clean), _both(corrupted(clean)), strict=True):
        assert _labels(plain) == _labels(changed)
        assert [getattr(plain, n) for n in TIMELINE] == [getattr(changed, n) for n in TIMELINE]
        x = _x(changed)
        assert x.shape == _x(plain).shape
        assert (x - _x(plain)).abs().mean() > 0.05
        assert torch.equal((x * 255).round() / 255, x)


def test_domains_may_be_corrupted(photos):
    clean = domains_stream([photos, photos], image_size=8)
    first, second = corrupted(clean, "none,blur").train_stream
    assert torch.equal(_x(first), _x(clean.train_stream[0]))
    assert not torch.equal(_x(second), _x(clean.train_stream[1]))


@pytest.mark.parametrize("text", [*(f"{kind}:0" for kind in CORRUPTIONS), "none", "none:5"])
def test_level_0_and_none_change_nothing(photos, text):
    clean = split_stream(photos, n_experiences=2)
    assert torch.equal(_all(corrupted(clean, text)), _all(clean))


@pytest.mark.parametrize("kind", ["noise", "blur", "contrast"])
def test_a_higher_level_is_further_from_the_image(photos, kind):
    clean = split_stream(photos, n_experiences=2)
    distances = [
        float((_all(corrupted(clean, f"{kind}:{level}")) - _all(clean)).abs().mean())
        for level in (0.5, 1, 2, 3.5, 5)
    ]
    assert all(less < more for less, more in pairwise(distances))


@pytest.mark.parametrize("level", [0.5, 1, 2])
def test_noise_has_the_deviation_of_its_level(greys, level):
    noise = _all(corrupted(greys, f"noise:{level}", seed=1)) - 0.5
    assert abs(noise.mean()) < 0.002
    assert noise.std() == pytest.approx(0.06 * level, rel=0.02)


def test_each_sample_has_noise_of_its_own(greys):
    noisy = corrupted(greys, "noise")
    images = torch.cat([_x(each) for each in _both(noisy)]).flatten(1)
    assert len(np.unique(images.numpy(), axis=0)) == len(images) == 160
    relation = np.corrcoef(images.numpy() - 0.5) - np.eye(160)
    assert np.abs(relation).max() < 0.25


def test_noise_is_of_the_seed_experience_and_sample_alone(greys, photos, monkeypatch):
    noisy = corrupted(greys, "noise", seed=3)
    monkeypatch.setattr("avalanche_mgem.streams.vision.corruptions._CHUNK", 7)
    assert torch.equal(_all(corrupted(greys, "noise", seed=3)), _all(noisy))
    assert not torch.equal(_all(corrupted(greys, "noise", seed=4)), _all(noisy))
    few, many = (
        permuted_stream(photos, n_experiences=n, train_per_experience=count)
        for n, count in ((1, 5), (2, 12))
    )
    few, many = (_x(corrupted(each, "noise").train_stream[0]) for each in (few, many))
    assert torch.equal(few, many[:5])


@given(level=st.floats(0.1, 5), height=st.integers(1, 12), width=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_blur_is_torchvisions_and_keeps_a_constant(level, height, width):
    images = torch.rand(2, 3, height, width)
    blurred = applied(Corruption("blur", level), images, [])
    deviation = 0.4 * level
    reach = math.ceil(3 * deviation)
    kernel = [2 * min(reach, width - 1) + 1, 2 * min(reach, height - 1) + 1]
    assert torch.allclose(blurred, gaussian_blur(images, kernel, deviation), atol=1e-6)
    flat = torch.full((1, 1, height, width), 0.3)
    assert torch.allclose(applied(Corruption("blur", level), flat, []), flat, atol=1e-6)


@given(level=st.floats(0, 5))
def test_contrast_keeps_the_mean_and_scales_the_rest(level):
    images = torch.rand(4, 3, 5, 6)
    changed = applied(Corruption("contrast", level), images, [])
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    factor = 1 - 0.16 * level
    assert torch.allclose(changed - mean, factor * (images - mean), atol=1e-6)
    assert torch.allclose(changed.mean(dim=(1, 2, 3)), mean.flatten(), atol=1e-6)


@pytest.mark.parametrize(
    "several",
    ["contrast:2,none,noise", ["contrast:2", "none", "noise"], " contrast:2.0, none,noise"],
)
def test_several_are_dealt_to_the_experiences_in_turn(photos, several):
    clean = permuted_stream(photos, n_experiences=5)
    dealt = corrupted(clean, several, seed=2)
    for i, kind in enumerate(["contrast:2", "none", "noise:3", "contrast:2", "none"]):
        alone = corrupted(clean, kind, seed=2)
        for name in ("train", "test"):
            assert torch.equal(_x(dealt.streams[name][i]), _x(alone.streams[name][i]))


def test_the_global_random_state_is_neither_read_nor_moved(photos):
    streams = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
        streams.append(corrupted(split_stream(photos, n_experiences=2), "noise,blur"))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tobytes() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(*map(_all, streams))


def test_random_transforms_draw_from_the_seed_alone(photos, monkeypatch):
    samples = TensorDataset(unit_range(photos.x_train), photos.y_train)
    samples.targets = photos.y_train.tolist()
    flip = (RandomHorizontalFlip(), None)
    data = as_classification_dataset(
        samples, transform_groups=TransformGroups({"train": flip, "eval": flip})
    )
    clean = benchmark_from_datasets(train=[data], test=[data])
    results = []
    for state, seed, chunk in ((1, 0, 1024), (2, 0, 7), (2, 1, 1024)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        monkeypatch.setattr("avalanche_mgem.streams.vision.corruptions._CHUNK", chunk)
        results.append(_all(corrupted(clean, "none", seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("corruption", "message"),
    [
        ("nois", r"corruption: unknown 'nois'; did you mean 'noise'\?"),
        ("nois:x", "corruption: unknown 'nois'"),
        ("noise,", "corruption: unknown ''"),
        ([], "corruption must name at least one of noise, blur, contrast, none, got none"),
        ("noise:6", "level of noise must be at most 5, got 6.0"),
        ("blur:-1", "level of blur must be a finite number >= 0, got -1.0"),
        ("blur:nan", "level of blur must be a finite number >= 0, got nan"),
        ("contrast:high", "level of contrast must be a number from 0 to 5, got 'high'"),
        ("contrast:", "level of contrast must be a number from 0 to 5, got ''"),
    ],
)
def test_what_is_no_corruption_is_refused(photos, corruption, message):
    with pytest.raises(ValueError, match=message):
        corrupted(split_stream(photos, n_experiences=2), corruption)


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_a_seed_must_be_an_integer(photos, seed):
    with pytest.raises(ValueError, match=f"seed must be a whole number >= 0, got {seed}"):
        corrupted(split_stream(photos, n_experiences=2), seed=seed)


def test_flat_samples_cannot_be_corrupted():
    data = ArrayData("flat", torch.rand(4, 7), torch.arange(4), torch.rand(2, 7), torch.arange(2))
    with pytest.raises(ValueError, match=r"stream must hold images .* 0 has samples of shape \(7,"):
        corrupted(permuted_stream(data, n_experiences=1))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 255.0), (0.0, float("nan"))])
def test_values_must_be_pixels(low, high):
    x, y = torch.zeros(4, 1, 3, 3), torch.arange(4) % 2
    x[0, 0, 0, 0], x[3, 0, 1, 1] = low, high
    stream = permuted_stream(ArrayData("values", x, y, x, y), n_experiences=1)
    with pytest.raises(ValueError, match=r"values in \[0, 1\] .* experience 0 go from"):
        corrupted(stream)


def test_task_labels_must_be_none_or_those_of_the_experiences(photos):
    clean = split_stream(photos, n_experiences=3, task_labels=True)
    shuffled = [[each.dataset for each in s][::-1] for s in (clean.train_stream, clean.test_stream)]
    stream = benchmark_from_datasets(train=shuffled[0], test=shuffled[1])
    with pytest.raises(
        ValueError, match=r"task label 0 everywhere, or i in experience i, got \[0,"
    ):
        corrupted(stream)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("split-cifar100", ("split-cifar100", None)),
        ("split-cifar100+noise", ("split-cifar100", "noise")),
        ("split-cifar100+noise:2.5,blur", ("split-cifar100", "noise:2.5,blur")),
        ("domains:a.npz,b+c.npz+contrast:1", ("domains:a.npz,b+c.npz", "contrast:1")),
        ("split:a+b.npz", ("split:a+b.npz", None)),
        ("split:birds+noise/", ("split:birds+noise/", None)),
    ],
)
def test_a_corruption_is_taken_off_a_streams_name(name, expected):
    assert take_off_corruption(name) == expected


@pytest.mark.parametrize("name", ["split-cifar100+nois", "split-cifar100+noise:9", "x+blur:1,fog"])
def test_a_wrong_corruption_in_a_name_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown|at most 5"):
        take_off_corruption(name)


def test_levels_are_3_by_default():
    assert parse_corruptions("noise,blur:1.5") == (Corruption("noise", 3), Corruption("blur", 1.5))
