"""Decisions as metrics: what is emitted, under which names, and the picture."""

import math

import numpy as np
import pytest
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from tiny import N_CLASSES, N_FEATURES, domain_stream, sgd
from torch import nn

from avalanche_mgem import HybridMagnitudePlugin
from avalanche_mgem.evaluation import DecisionMetric, ShowsDecision, decision_metrics
from avalanche_mgem.evaluation.decisions import modules_by_task
from avalanche_mgem.restriction.similarity import Decision


class Log:
    """Keeps what is emitted."""

    def __init__(self):
        self.values = []

    def log_metrics(self, values):
        self.values += values


def deep():
    hidden = [nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(8, N_CLASSES))


def run(metric, plugins, stream=None):
    model, log = deep(), Log()
    strategy = Naive(
        model=model,
        optimizer=sgd(model, lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=plugins,
        evaluator=EvaluationPlugin(metric, loggers=[log]),
    )
    strategy.train(domain_stream().train_stream if stream is None else stream)
    return log.values


def test_what_is_emitted_after_each_experience():
    plugin = HybridMagnitudePlugin(low=1, threshold=-2.0, seed=0)
    assert isinstance(plugin, ShowsDecision)
    metric = DecisionMetric()
    values = run(metric, [plugin])
    path = "/train_phase/train_stream"
    by_name = {}
    for value in values:
        by_name.setdefault(value.name, []).append(value.value)
    assert {name: len(each) for name, each in by_name.items()} == {
        f"Hybrid_ModulesTrained{path}": 3,
        f"Hybrid_Similarity{path}": 2,
        f"Hybrid_RidgeHead{path}": 2,
        f"Hybrid_Similarity{path}/0": 2,
        f"Hybrid_Similarity{path}/2": 2,
        f"Hybrid_Modules{path}": 3,
    }
    assert by_name[f"Hybrid_ModulesTrained{path}"] == [2.0, 1.0, 1.0]
    assert all(type(value) is float for value in by_name[f"Hybrid_Similarity{path}"])
    assert by_name[f"Hybrid_Similarity{path}"][-1] == plugin.last_decision.similarity
    assert by_name[f"Hybrid_RidgeHead{path}"] == [0.0, 0.0]
    assert metric.history[-1] is plugin.last_decision
    assert metric.result() == {
        "Hybrid_Similarity": pytest.approx(np.mean(by_name[f"Hybrid_Similarity{path}"])),
        "Hybrid_ModulesTrained": pytest.approx(4 / 3),
    }
    metric.reset()
    assert metric.result() == {}


def test_a_cosine_behind_a_fitted_head_says_so():
    metric = DecisionMetric(modules=False, figure=False)
    values = run(metric, [HybridMagnitudePlugin(probe_head="ridge", seed=0)])
    behind = [value.value for value in values if value.name.startswith("Hybrid_RidgeHead")]
    assert behind == [1.0, 1.0]


def test_without_a_plugin_nothing_is_emitted():
    (metric,) = decision_metrics()
    assert run(metric, []) == []
    assert metric.result() == {}


def test_parts_may_be_left_out():
    (metric,) = decision_metrics(modules=False, figure=False)
    values = run(metric, [HybridMagnitudePlugin("frozen")])
    assert {value.name.split("/")[0] for value in values} == {"Hybrid_ModulesTrained"}
    assert metric.result() == {"Hybrid_ModulesTrained": pytest.approx(4 / 3)}


def test_sub_experiences_without_a_decision_emit_nothing():
    stream = split_online_stream(
        domain_stream(2).train_stream, experience_size=8, access_task_boundaries=False
    )
    (metric,) = decision_metrics(figure=False)
    values = run(metric, [HybridMagnitudePlugin(decide_every=4, seed=0)], list(stream))
    trained = [v for v in values if v.name.startswith("Hybrid_ModulesTrained")]
    assert len(trained) == len(metric.history) == 2  # at the start and after 4 of 6 iterations


def test_the_picture_has_a_row_a_module_and_a_column_a_task():
    both = ("top", "bottom")
    decisions = [
        Decision(None, {}, both, both),
        Decision(0.5, {}, ("top",), both),
        Decision(0.5, {}, ("new",), ("new", "top")),
    ]
    figure = modules_by_task(decisions)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["top", "bottom", "new"]
    shown = axes.collections[0].get_array().filled(math.nan)
    np.testing.assert_array_equal(shown, [[1, 1, 0], [1, 0, math.nan], [math.nan, math.nan, 1]])
    assert axes.yaxis_inverted()
