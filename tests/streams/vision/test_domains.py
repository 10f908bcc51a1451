import pickle
import random

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import GEM, Naive
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_mgem.streams import (
    DOMAIN_SETS,
    ArrayData,
    domains_stream,
    load_domains,
    make_stream,
)


def _domain(name, shape, n_train=30, n_test=20, n_classes=10):
    generator = torch.Generator().manual_seed(len(name))
    x = torch.randint(0, 256, (n_train + n_test, *shape), generator=generator).to(torch.uint8)
    y = torch.arange(n_train + n_test) % n_classes
    return ArrayData(name, x[:n_train], y[:n_train], x[n_train:], y[n_train:])


@pytest.fixture(scope="module")
def domains():
    return [_domain("grey", (1, 8, 8)), _domain("colour", (3, 6, 6)), _domain("wide", (1, 4, 7))]


def _tensors(experience):
    items = [experience.dataset[i] for i in range(len(experience.dataset))]
    xs, ys, tasks = zip(*items, strict=True)
    return torch.stack(xs), list(ys), list(tasks)


def _same_streams(left, right):
    for name in ("train", "test"):
        for one, other in zip(left.streams[name], right.streams[name], strict=True):
            (x, *labels), (other_x, *other_labels) = _tensors(one), _tensors(other)
            if labels != other_labels or not torch.equal(x, other_x):
                return False
    return True


@given(
    train=st.none() | st.integers(1, 30),
    test=st.none() | st.integers(1, 20),
    size=st.integers(1, 9),
    task_labels=st.booleans(),
)
@settings(max_examples=20)
def test_every_domain_is_an_experience_of_rgb_images(domains, train, test, size, task_labels):
    stream = domains_stream(
        domains,
        train_per_experience=train,
        test_per_experience=test,
        image_size=size,
        task_labels=task_labels,
    )
    for part, count in ((stream.train_stream, train or 30), (stream.test_stream, test or 20)):
        assert len(part) == 3
        for i, experience in enumerate(part):
            x, labels, tasks = _tensors(experience)
            assert (x.shape, x.dtype) == ((count, 3, size, size), torch.float32)
            assert 0 <= x.min() <= x.max() <= 1
            assert set(tasks) == {i if task_labels else 0}
            assert np.ptp([labels.count(c) for c in range(10)]) <= 1
            assert experience.classes_in_this_experience == sorted(set(labels))


def test_samples_of_the_right_size_are_untouched(domains):
    x, labels, _ = _tensors(domains_stream(domains, image_size=8).train_stream[0])
    assert torch.equal(x, (domains[0].x_train.float() / 255).expand(-1, 3, -1, -1))
    assert labels == domains[0].y_train.tolist()


def test_a_seed_repeats_another_differs_and_the_global_state_is_left_alone(domains):
    streams = []
    for seed, state in ((0, 1), (0, 2), (1, 2)):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
        streams.append(domains_stream(domains, train_per_experience=9, seed=seed))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tobytes() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert _same_streams(*streams[:2])
    assert not _same_streams(*streams[1:])


def test_n_experiences_takes_the_first(domains):
    few = domains_stream(domains, n_experiences=2, image_size=8)
    assert _same_streams(few, domains_stream(domains[:2], image_size=8))
    with pytest.raises(ValueError, match="n_experiences=4 is more than the 3 domains"):
        domains_stream(domains, n_experiences=4)


def test_a_stream_of_domains_can_be_pickled_small(domains):
    stream = domains_stream(domains, image_size=8)
    dumped = pickle.dumps(stream)
    assert len(dumped) < 3 * 50 * 3 * 64 * 2
    assert _same_streams(pickle.loads(dumped), stream)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "at least one domain"),
        ([_domain("two", (2, 8, 8))], r"'two' have shape \(2, 8, 8\)"),
        ([_domain("flat", (8,))], r"'flat' have shape \(8,\)"),
        (
            [_domain("ten", (1, 8, 8)), _domain("five", (1, 8, 8), n_classes=5)],
            "'ten' has 10 and 'five' has 5",
        ),
    ],
)
def test_domains_that_do_not_fit_are_refused(others, message):
    with pytest.raises(ValueError, match=message):
        domains_stream(others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"n_experiences": 0}, "n_experiences must be a whole number"),
        ({"train_per_experience": 31}, "train_per_experience=31 .* experience 0 has: at most 30"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_wrong_sizes_are_refused(domains, arguments, message):
    with pytest.raises(ValueError, match=message):
        domains_stream(domains, **arguments)


@pytest.mark.parametrize("strategy", [Naive, GEM])
def test_avalanches_strategies_train_and_evaluate(domains, strategy):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    settings_ = {"patterns_per_exp": 5, "memory_strength": 0.5} if strategy is GEM else {}
    trained = strategy(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        evaluator=EvaluationPlugin(),
        **settings_,
    )
    stream = domains_stream(domains, image_size=8)
    for experience in stream.train_stream:
        trained.train(experience)
    trained.eval(stream.test_stream)
    assert trained.clock.train_exp_counter == 3


def _contents(labels, shape=(8, 8)):
    labels = np.asarray(labels)
    x = np.zeros((len(labels), *shape), dtype=np.uint8)
    return {"x_train": x, "y_train": labels, "x_test": x, "y_test": labels}


@pytest.fixture
def digit_five(write_npz, tmp_path):
    for i, name in enumerate(DOMAIN_SETS["digit-five"]):
        write_npz(_contents(range(10), (8, 8, 3) if i % 2 else (9, 9)), f"{name}.npz")
    return tmp_path


def test_digit_five_is_five_domains_of_32_pixels(digit_five):
    stream = make_stream("domains-digit-five", data_root=digit_five, download=False)
    assert [len(each.dataset) for each in stream.train_stream] == [10] * 5
    assert stream.train_stream[0].dataset[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("chosen", ["usps,mnist", ("usps", "mnist"), ["usps", "mnist"]])
def test_domains_are_selected_and_ordered(write_npz, tmp_path, chosen):
    write_npz(_contents([*range(10), 1]), "usps.npz")
    write_npz(_contents([*range(10), 1, 2]), "mnist.npz")
    stream = make_stream("domains-digit-five", data_root=tmp_path, download=False, domains=chosen)
    assert [len(each.dataset) for each in stream.train_stream] == [11, 12]


def test_all_that_is_missing_is_listed_and_what_is_there_suggested(digit_five):
    for name in ("svhn", "synthetic_digits"):
        (digit_five / f"{name}.npz").unlink()
    with pytest.raises(ValueError, match=r"2 of 5 domains cannot be had") as caught:
        make_stream("domains-digit-five", data_root=digit_five, download=False)
    text = str(caught.value)
    assert "- svhn: " in text
    assert str(digit_five / "train_32x32.mat") in text
    assert "- synthetic_digits: " in text
    assert str(digit_five / "synthetic_digits.npz") in text
    assert "domains='mnist,mnist_m,usps'" in text


def test_nothing_is_downloaded_where_another_domain_cannot_be_had(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        pytest.fail("torchvision was asked")

    monkeypatch.setattr("torchvision.datasets.MNIST", fail)
    with pytest.raises(ValueError, match="2 of 5 domains cannot be had"):
        make_stream("domains-digit-five", data_root=tmp_path, download=True)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("usp", "domains: unknown 'usp'; did you mean 'usps'"),
        (["mnist", "mnist"], "each once"),
        ([], "at least one domain"),
    ],
)
def test_a_selection_that_is_none_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        make_stream("domains-digit-five", domains=chosen)


def test_files_of_the_user_make_a_stream(write_npz, tmp_path):
    write_npz(_contents([3, 5]), "a.npz")
    write_npz(_contents([5, 3, 3], (4, 4, 3)), "b.npz")
    stream = make_stream("domains:a.npz,b.npz", data_root=tmp_path, image_size=6)
    assert [list(each.dataset.targets) for each in stream.train_stream] == [[0, 1], [1, 0, 0]]


def test_labels_that_only_look_alike_once_numbered_are_refused(write_npz, tmp_path):
    write_npz(_contents(range(10)), "a.npz")
    write_npz(_contents(range(1, 11)), "b.npz")
    with pytest.raises(ValueError, match=r"same labels, but 'a\.npz' has \[0, 1.*\[1, 2"):
        load_domains(["a.npz", "b.npz"], data_root=tmp_path)
