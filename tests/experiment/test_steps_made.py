"""Half precision, micro-batches, clipping, schedules and augmentation, as settings of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from hypothesis import given
from hypothesis import strategies as st
from run_cases import TRAINING, specification
from tiny import Call
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, MultiStepLR

from avalanche_mgem import ClipGradientPlugin
from avalanche_mgem.bridge.accumulation import GradientAccumulation
from avalanche_mgem.bridge.precision import MixedPrecision
from avalanche_mgem.experiment import METHODS, Method
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.checks import check_runs
from avalanche_mgem.experiment.run import SilentLogger, run
from avalanche_mgem.experiment.schedules import SCHEDULES
from avalanche_mgem.streams import ArrayData, split_stream
from avalanche_mgem.streams.validation import with_validation
from avalanche_mgem.streams.vision.augmentation import with_augmentation

SETTINGS = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "accumulate": {"accumulate": 3},
    "clip": {"clip": 0.5},
    "schedule": {"schedule": "cosine"},
    "all": {"precision": "fp16", "accumulate": 2, "clip": 1.0, "schedule": "warmup-cosine"},
}
NAMES = [name for name in METHODS if "lora" not in name] + ["mgem-d+migu-update"]


def with_settings(name, **settings):
    return specification(name, training=replace(TRAINING, **settings))


def build(name, **settings):
    made = with_settings(name, **settings)
    evaluator = EvaluationPlugin(loggers=[SilentLogger()])
    scenario = made.scenario()
    return build_strategy(made, scenario, evaluator), scenario


@pytest.mark.cover
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_every_method_trains_and_says_how(name, settings):
    one, two = (run(with_settings(name, **SETTINGS[settings])) for _ in range(2))
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    assert np.isfinite(one.scores["acc"])
    told = one.configuration["training"]
    assert {key: told[key] for key in SETTINGS[settings]} == SETTINGS[settings]


@pytest.mark.parametrize("name", ["naive", "mgem-d", "replay+migu"])
def test_they_reach_the_strategy(name):
    strategy, _ = build(name, **SETTINGS["all"])
    assert isinstance(strategy, MixedPrecision)
    assert isinstance(strategy, GradientAccumulation)
    assert strategy.precision == "fp16"
    assert strategy.micro_batch_size == TRAINING.batch_size // 2
    (clip,) = (p for p in strategy.plugins if isinstance(p, ClipGradientPlugin))
    assert clip.max_norm == 1.0
    plain, _ = build(name)
    assert not isinstance(plain, MixedPrecision | GradientAccumulation)
    assert not any(isinstance(p, ClipGradientPlugin) for p in plain.plugins)


def test_parts_that_do_not_divide_a_minibatch_are_as_many():
    strategy, _ = build("naive", accumulate=3)  # of 8
    assert strategy.micro_batch_size == 3


def mine(**arguments):
    return Naive(**arguments)


@pytest.mark.parametrize(("name", "value"), [("precision", "bf16"), ("accumulate", 2)])
def test_a_strategy_that_is_no_class_is_refused_by_the_argument(name, value):
    message = rf"^mine: {name}={value!r}: strategy must be a class"
    with pytest.raises(ValueError, match=message):
        check_runs([with_settings(Method("mine", mine), **{name: value})])


# Schedules


def rates_by(schedule, n, rate):
    """The rates of torch's scheduler, made anew and stepped n times."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate)
    scheduler = {
        "cosine": lambda: CosineAnnealingLR(optimizer, n),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, total_iters=n),
        "step": lambda: MultiStepLR(optimizer, [-(-n // 2), -(-3 * n // 4)]),
        "exponential": lambda: ExponentialLR(optimizer, 0.01 ** (1 / n)),
    }[schedule]()
    rates = []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "exponential"])
@pytest.mark.parametrize("name", ["naive", "replay"])
def test_each_experience_has_the_rates_of_a_new_scheduler_of_torch(name, schedule):
    strategy, scenario = build(name, schedule=schedule, epochs=2)
    rates, between = [], []

    def rate():
        return strategy.optimizer.param_groups[0]["lr"]

    strategy.plugins.append(Call(after_update=lambda _: rates[-1].append(rate())))
    for experience in scenario.train_stream:
        rates.append([])
        strategy.train(experience)
        between.append(rate())
    for seen in rates:
        assert len(seen) > 4
        expected = rates_by(schedule, len(seen), TRAINING.learning_rate)
        np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert between == [TRAINING.learning_rate] * 3


@given(st.floats(0.0, 1 - 1e-6))  # a million iterations
def test_no_schedule_stands_still_or_goes_beyond_the_rate(done):
    for schedule in SCHEDULES.values():
        assert 0.0 < schedule(done) <= 1.0


# Augmentation


def images(size=16, channels=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, channels, size, size, generator=generator)
    y = torch.arange(24) % 4
    return ArrayData("images", x, y, x[:8], y[:8])


def image_stream(seed, size=16):
    return split_stream(images(size), n_experiences=2, seed=seed)


def view(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def test_training_images_move_and_all_others_stay():
    plain = with_validation(image_stream(0), 0.3, seed=0)
    made = with_augmentation(plain)
    for before, after in zip(plain.train_stream, made.train_stream, strict=True):
        raw, one, two = (view(d) for d in (before.dataset, after.dataset, after.dataset))
        assert one.shape == raw.shape
        assert not torch.equal(one, raw)
        assert not torch.equal(one, two)
        assert torch.equal(view(after.dataset.eval()), raw)
        assert [item[1:] for item in after.dataset] == [item[1:] for item in before.dataset]
        assert after.classes_in_this_experience == before.classes_in_this_experience
    for name in ("validation_stream", "test_stream"):
        for before, after in zip(getattr(plain, name), getattr(made, name), strict=True):
            assert torch.equal(view(after.dataset), view(before.dataset))


def test_an_augmented_image_is_a_shift_of_the_image_or_of_its_mirror():
    plain, made = image_stream(0), with_augmentation(image_stream(0))
    found = view(made.train_stream[0].dataset)
    for image, moved in zip(view(plain.train_stream[0].dataset), found, strict=True):
        padded = nn.functional.pad(image, (2, 2, 2, 2))  # an eighth of 16
        shifts = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
        assert any(torch.equal(moved, each) or torch.equal(moved, each.flip(2)) for each in shifts)


def test_the_memory_of_mgem_has_the_images_as_they_are():
    training = replace(TRAINING, augment=True, memory=4)
    made = specification("gem-auto", stream=image_stream, training=training)
    scenario = made.scenario()
    strategy = build_strategy(made, scenario, EvaluationPlugin(loggers=[SilentLogger()]))
    strategy.train(scenario.train_stream[0])
    raw = view(image_stream(0).train_stream[0].dataset)
    (group,) = strategy.plugins[0].memory.closed_groups()
    kept = group.batch[0]
    assert len(kept) == 4
    assert all(any(torch.equal(image, each) for each in raw) for image in kept)


@pytest.mark.parametrize("name", ["replay", "joint", "cumulative"])
def test_runs_on_augmented_images_differ_and_repeat(name):
    training = replace(TRAINING, augment=True)
    one, two = (run(specification(name, stream=image_stream, training=training)) for _ in range(2))
    plain = run(specification(name, stream=image_stream))
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    assert one.metrics["Distance_Absolute"] != plain.metrics["Distance_Absolute"]


def small(seed):
    return image_stream(seed, size=8)


@pytest.mark.parametrize(
    ("stream", "told"), [(small, r"shape \(3, 8, 8\)"), (None, r"shape \(6,\)")]
)
def test_what_is_no_image_or_too_small_is_refused(stream, told):
    changes = {} if stream is None else {"stream": stream}
    training = replace(TRAINING, augment=True)
    with pytest.raises(ValueError, match=f"augment needs images .* at least 16 x 16 .*{told}"):
        check_runs([specification(training=training, **changes)])
