"""How far training moved the weights, as metrics, against copies made by hand."""

import copy
import math
import pickle

import pytest
import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import (
    SETTINGS,
    Call,
    class_stream,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch import nn

from avalanche_mgem.evaluation import DistanceMetric, distance_metrics

KINDS = ("Absolute", "Relative", "FromStart")


def run(metrics, setting="single head", *, plugins=(), optimizer=None, loggers=(), model=None):
    model = make_model(setting) if model is None else model
    strategy = make_strategy(model, plugins, optimizer=optimizer)
    evaluator = EvaluationPlugin(metrics, loggers=list(loggers))
    strategy.plugins[-1] = strategy.evaluator = evaluator
    return train(strategy, SETTINGS[setting][1]().train_stream)


def noted(setting, **arguments):
    """The model before and after every experience, and what the metric said."""
    before, after = [], []
    note = Call(
        before_training_exp=lambda s: before.append(copy.deepcopy(s.model)),
        after_training_exp=lambda s: after.append(copy.deepcopy(s.model)),
    )
    metric = DistanceMetric(modules=True)
    run(metric, setting, plugins=[note], **arguments)
    return before, after, metric


def distances_by_hand(after, before, prefix=""):
    old = {n: p.detach() for n, p in before.named_parameters()}
    squares = [
        (float(((p.detach() - old[n]).double() ** 2).sum()), float((old[n].double() ** 2).sum()))
        for n, p in after.named_parameters()
        if n in old and old[n].shape == p.shape and n.rpartition(".")[0].startswith(prefix)
    ]
    moved, size = (math.sqrt(sum(column)) for column in zip(*squares, strict=True))
    return moved, moved / size


@pytest.mark.parametrize("setting", SETTINGS)
def test_distances_are_those_of_copies_by_hand(setting):
    before, after, metric = noted(setting)
    for index, told in enumerate(metric.history):
        moved, share = distances_by_hand(after[index], before[index])
        assert told["Distance_Absolute"] == pytest.approx(moved)
        assert told["Distance_Relative"] == pytest.approx(share)
        start, _ = distances_by_hand(after[index], before[0])
        assert told["Distance_FromStart"] == pytest.approx(start)
    assert len(metric.history) == 3
    assert metric.history[0]["Distance_FromStart"] == metric.history[0]["Distance_Absolute"]


def test_modules_have_their_own_and_make_up_the_whole():
    before, after, metric = noted("single head")
    for index, told in enumerate(metric.history):
        for module in ("0", "2"):
            moved, share = distances_by_hand(after[index], before[index], module)
            assert told[f"Distance_Absolute/{module}"] == pytest.approx(moved)
            assert told[f"Distance_Relative/{module}"] == pytest.approx(share)
        parts = [told[f"Distance_Absolute/{module}"] for module in ("0", "2")]
        assert math.hypot(*parts) == pytest.approx(told["Distance_Absolute"])


def test_what_is_frozen_has_not_moved():
    def adamw(model):
        return torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)

    _, _, metric = noted("frozen part", optimizer=adamw)
    for told in metric.history:
        assert told["Distance_Absolute/1"] == told["Distance_FromStart/1"] == 0.0
        assert told["Distance_Absolute/0"] > 0


def test_what_changed_its_shape_since_is_left_out():
    def grow(strategy):
        if strategy.experience.current_experience == 1:
            old = strategy.model[2]
            strategy.model[1] = nn.Sequential(nn.ReLU(), nn.Linear(8, 10))
            strategy.model[2] = nn.Linear(10, old.out_features, bias=True)
            strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), 0.3)

    metric = DistanceMetric(modules=True)
    run(metric, plugins=[Call(before_training_exp=grow)])
    absolute = [{n for n in told if n.startswith("Distance_Abs")} for told in metric.history]
    # What a plugin changes before an experience is there when the experience begins.
    assert [f"Distance_Absolute/{n}" in absolute[1] for n in ("0", "1.1", "2")] == [True] * 3
    last = metric.history[-1]
    assert [f"Distance_FromStart/{n}" in last for n in ("0", "1.1", "2")] == [True, False, True]
    parts = last["Distance_FromStart/2"] ** 2 + last["Distance_FromStart/0"] ** 2
    assert last["Distance_FromStart"] == pytest.approx(math.sqrt(parts))


def test_distance_from_zero_has_no_share():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make_model()
            self.shift = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return self.layer(x) + self.shift

    metric = DistanceMetric(modules=True)
    run(metric, model=Added())
    assert "Distance_Relative/model" not in metric.history[0]
    assert metric.history[0]["Distance_Absolute/model"] > 0
    assert metric.history[1]["Distance_Relative/model"] > 0


def test_half_precision_is_measured_in_single():
    model = make_model().bfloat16()
    metric = DistanceMetric(modules=True)
    strategy = make_strategy(model)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        before = model[0].weight.clone()
        metric.before_training_exp(strategy)
        model[0].weight.fill_(1.0078125)  # the next bfloat16
    strategy.experience = domain_stream().train_stream[0]
    metric.after_training_exp(strategy)
    expected = math.sqrt(before.numel()) * 0.0078125
    assert metric.history[-1]["Distance_Absolute/0"] == pytest.approx(expected)


def test_the_result_is_the_mean_over_experiences():
    metric = DistanceMetric(modules=True)
    assert metric.result() == {}
    run(metric)
    for name in ("Distance_Absolute", "Distance_Relative"):
        values = [told[name] for told in metric.history]
        assert metric.result()[name] == pytest.approx(sum(values) / 3)
    assert metric.result()["Distance_FromStart"] == metric.history[-1]["Distance_FromStart"]
    assert not metric._before  # the copy is let go
    metric.reset()
    assert metric.result() == {}
    assert metric.history == []


def test_without_the_start_no_copy_outlives_an_experience():
    metric = DistanceMetric(from_start=False)
    run(metric)
    assert set(metric.result()) == {"Distance_Absolute", "Distance_Relative"}
    assert not metric._start
    assert not metric._before


def test_training_and_the_random_state_are_as_without():
    states = []
    for metrics in ([], distance_metrics(modules=True)):
        strategy = run(metrics)
        states.append((parameter_vector(strategy.model), torch.get_rng_state()))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_the_same_memory(copied):
    stream = class_stream().train_stream
    metric = DistanceMetric(modules=True)
    strategy = run(metric)
    other = copied(metric)
    for one in (metric, other):
        strategy.experience = stream[0]
        one.before_training_exp(strategy)
        one.after_training_exp(strategy)
    assert other.history == metric.history
    assert other.history[-1]["Distance_Absolute"] == 0.0
    assert other.history[-1]["Distance_FromStart"] > 0


def test_tensorboard_shows_every_value(tmp_path):
    (metric,) = distance_metrics(modules=True)
    logger = TensorboardLogger(tmp_path)
    run(metric, loggers=[logger])
    logger.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = {
        tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    phase = "train_phase/train_stream"
    suffixes = ("", "/0", "/2")
    assert set(shown) == {f"Distance_{kind}/{phase}{s}" for kind in KINDS for s in suffixes}
    for kind in KINDS:
        expected = [told[f"Distance_{kind}/0"] for told in metric.history]
        assert shown[f"Distance_{kind}/{phase}/0"] == pytest.approx(expected)
