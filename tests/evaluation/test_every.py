"""Evaluation in the middle of experiences: what it finds, and that it changes nothing."""

import math

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import (
    split_continuous_linear_decay_stream,
    split_online_stream,
)
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import JointTraining, Naive
from tiny import (
    SETTINGS,
    Call,
    class_stream,
    domain_stream,
    make_model,
    parameter_vector,
    sgd,
)
from torch import nn

from avalanche_mgem.bridge.experiences import classes_of
from avalanche_mgem.evaluation import AccuracyMatrix, EvaluateEvery
from avalanche_mgem.evaluation.matrix import minimum_accuracy, worst_case_accuracy


class Keeper:
    """A logger that keeps everything."""

    def __init__(self):
        self.values = {}

    def log_metrics(self, values):
        for value in values:
            self.values.setdefault(value.name, []).append((value.x_plot, value.value))


def strategy_of(model, plugins, *metrics, kind=Naive, keeper=None, lr=0.3, **arguments):
    return kind(
        model=model,
        optimizer=sgd(model, lr),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=7,
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics, loggers=[keeper or Keeper()]),
        **arguments,
    )


@torch.no_grad()
def by_hand(strategy, experience):
    training = strategy.model.training
    strategy.model.eval()
    hits = [int(strategy.model(x[None]).argmax()) == y for x, y, *_ in experience.dataset]
    strategy.model.train(training)
    return sum(hits) / len(hits)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("every", [1, 2])
def test_training_is_the_same_to_the_bit(setting, every):
    """Parameters, statistics of batch norm, random states, and what the metrics of training say."""
    states = []
    for watched in (False, True):
        scenario, model, keeper = SETTINGS[setting][1](), make_model(setting), Keeper()
        plugins = [EvaluateEvery(every, scenario.test_stream)] if watched else []
        metrics = accuracy_metrics(minibatch=True, epoch=True), AccuracyMatrix(curve=watched)
        strategy = strategy_of(model, plugins, *metrics, keeper=keeper, train_epochs=2)
        torch.manual_seed(3)
        for experience in scenario.train_stream:
            strategy.train(experience)
        told = {name: v for name, v in keeper.values.items() if "train_phase" in name}
        states.append((strategy.model.state_dict(), torch.get_rng_state(), told))
    (plain, random, told), (other, other_random, other_told) = states
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert torch.equal(random, other_random)
    assert told == other_told
    assert len(told) > 1


def test_modules_are_in_the_mode_in_which_they_were():
    """Also a frozen batch norm, which a user keeps in evaluation mode."""
    scenario, modes = domain_stream(n_train=32), []
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))

    def freeze(strategy):
        strategy.model[1].eval()

    def note(strategy):
        modes.append([module.training for module in strategy.model.modules()])

    every = EvaluateEvery(1, scenario.test_stream)
    plugins = [Call(before_training_iteration=freeze), every, Call(before_forward=note)]
    strategy_of(model, plugins, AccuracyMatrix()).train(scenario.train_stream[0])
    assert modes == [[True, True, False, True, True]] * 4


def test_every_n_iterations_of_a_task_what_was_trained_is_evaluated():
    scenario, keeper = domain_stream(n_train=32), Keeper()  # 4 iterations an epoch
    metric, expected = AccuracyMatrix(curve=True), []
    every = EvaluateEvery(3, scenario.test_stream)

    def note(strategy):
        done = strategy.clock.train_exp_iterations
        if done and done % 3 == 0:
            task = strategy.experience.current_experience
            row = [by_hand(strategy, e) for e in scenario.test_stream[: task + 1]]
            expected.append((strategy.clock.train_iterations, task + 1, row))

    watch = Call(before_training_iteration=note)
    model = make_model()
    strategy = strategy_of(model, [watch, every], metric, keeper=keeper, train_epochs=2)
    for experience in scenario.train_stream:
        strategy.train(experience)
    curve = metric.curve()
    assert list(curve.iterations) == [at for at, _, _ in expected] == [3, 6, 11, 14, 19, 22]
    assert list(curve.trained) == [trained for _, trained, _ in expected]
    for row, (_, _, values) in zip(curve.accuracy, expected, strict=True):
        np.testing.assert_allclose(row[: len(values)], values)
        assert np.isnan(row[len(values) :]).all()
    for task in range(3):
        points = keeper.values[f"ACC_Exp/eval_phase/test_stream/Exp00{task}"]
        shown = [(at, values[task]) for at, _, values in expected if len(values) > task]
        np.testing.assert_allclose(points, shown)
    assert every.seconds > 0


@pytest.mark.parametrize("ours", [True, False])
def test_the_stability_gap_is_found(ours):
    """Worst cases over all evaluations, against a note of every one; R is of the ends alone."""
    scenario, metric = domain_stream(n_train=32), AccuracyMatrix(curve=True)
    lowest = {0: [], 1: []}
    plugins = [EvaluateEvery(1, scenario.test_stream)] if ours else []
    arguments = {} if ours else {"eval_every": 1, "peval_mode": "iteration"}
    strategy = strategy_of(make_model(), plugins, metric, train_epochs=2, lr=4.0, **arguments)
    rows = []

    def note(strategy):
        now = strategy.clock.train_exp_iterations
        for task in range(strategy.experience.current_experience):
            if now:
                lowest[task].append(by_hand(strategy, scenario.test_stream[task]))

    strategy.plugins.insert(0, Call(before_training_iteration=note))
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[scenario.test_stream])
        values = strategy.eval(scenario.test_stream)
        row = [by_hand(strategy, e) for e in scenario.test_stream]
        for task in range(len(rows)):
            lowest[task].append(row[task])
        rows.append(row)
    np.testing.assert_allclose(metric.result(), rows)
    least = [min(lowest[0]), min(lowest[1])]
    np.testing.assert_allclose(metric.lowest(), [*least, math.nan])
    np.testing.assert_allclose(metric.curve().lowest, [*least, math.nan])
    R = metric.result()
    assert values["MIN_ACC/eval_phase/test_stream"] == pytest.approx(np.mean(least))
    assert values["MIN_ACC/eval_phase/test_stream"] < minimum_accuracy(R)
    assert values["WC_ACC/eval_phase/test_stream"] == worst_case_accuracy(R, metric.lowest())


def test_iterations_of_an_online_task_are_counted_over_its_parts():
    scenario, metric = class_stream(), AccuracyMatrix(curve=True)
    every = EvaluateEvery(2, scenario.test_stream)
    strategy = strategy_of(make_model(), [every], metric)
    for experience in scenario.train_stream:
        for part in split_online_stream([experience], experience_size=8):
            strategy.train(part)
    assert len(metric.curve().iterations) == 3  # 3 iterations a task
    assert list(metric.curve().trained) == [1, 2, 3]


def test_of_a_blurry_stream_everything_is_evaluated():
    scenario, metric = class_stream(), AccuracyMatrix(curve=True)
    every = EvaluateEvery(2, scenario.test_stream)
    strategy = strategy_of(make_model(), [every], metric)
    for part in split_continuous_linear_decay_stream(scenario.train_stream, 8, 4, 3, True):
        strategy.train(part)
    assert np.isfinite(metric.curve().accuracy).all()
    assert metric.curve().accuracy.shape == (5, 3)


def test_of_joint_training_everything_is_evaluated():
    scenario, metric = class_stream(), AccuracyMatrix(curve=True)
    every = EvaluateEvery(3, scenario.test_stream)
    strategy = strategy_of(make_model(), [every], metric, kind=JointTraining)
    strategy.train(scenario.train_stream)
    assert list(metric.curve().iterations) == [3, 6]
    assert set(metric.curve().trained) == {3}
    assert np.isfinite(metric.curve().accuracy).all()
    assert np.isnan(metric.curve().lowest).all()


def test_an_evaluation_that_makes_the_model_grow_is_refused():
    scenario = class_stream()
    model = nn.Sequential(nn.Linear(6, 8), IncrementalClassifier(8, 1))
    few, many = sorted(range(3), key=lambda i: max(classes_of(scenario.test_stream[i])))[::2]
    other = scenario.test_stream[many]
    other.current_experience = few  # so the test of a task has classes that it was not trained on
    every = EvaluateEvery(1, [other])
    with pytest.raises(ValueError, match=r"EvaluateEvery: .* made the model grow"):
        strategy_of(model, [every], AccuracyMatrix()).train(scenario.train_stream[few])


@pytest.mark.parametrize(
    ("iterations", "stream", "told"),
    [
        (0, class_stream().test_stream, "iterations must be a whole number >= 1, got 0"),
        (1.0, class_stream().test_stream, "iterations must be a whole number"),
        (1, [], "stream must hold at least one experience"),
        (1, [1, 2], "stream must be a stream of Avalanche's"),
        (1, class_stream(), "stream must be a stream of Avalanche's"),
    ],
)
def test_arguments_are_looked_at(iterations, stream, told):
    with pytest.raises(ValueError, match=told):
        EvaluateEvery(iterations, stream)


def test_parameters_are_those_of_a_run_that_saw_nothing():
    scenario = domain_stream()
    vectors = []
    for every in (None, 1):
        plugins = [] if every is None else [EvaluateEvery(every, scenario.test_stream)]
        strategy = strategy_of(make_model("dropout"), plugins, AccuracyMatrix())
        torch.manual_seed(0)
        strategy.train(scenario.train_stream)
        vectors.append(parameter_vector(strategy.model))
    assert torch.equal(*vectors)
