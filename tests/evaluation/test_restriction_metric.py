"""What the restriction did, as metrics, against the plugin's own projections."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from nasty import Stubborn
from tiny import Call, domain_stream, make_model, sgd, train
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.evaluation import RestrictionMetric, restriction_metrics
from avalanche_mgem.restriction import Projection

NAMES = ("ViolatedIterations", "RelativeChange", "Cosine")


class Keeper:
    """A logger that keeps everything that was emitted, by name."""

    def __init__(self):
        self.values = {}

    def log_metrics(self, values):
        for value in values:
            self.values.setdefault(value.name, []).append(value.value)

    def of(self, name, suffix=""):
        return self.values.get(f"Restriction_{name}{suffix}/train_phase/train_stream", [])


def run(plugins, metric):
    keeper, model = Keeper(), make_model()
    strategy = Naive(
        model=model,
        optimizer=sgd(model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=plugins,
        evaluator=EvaluationPlugin(metric, loggers=[keeper]),
    )
    train(strategy, domain_stream().train_stream)
    return keeper


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_means_are_those_of_the_projections(restrict):
    by_experience = {0: [], 1: [], 2: []}

    def note(strategy):
        if plugin.last_projection is not None:
            projection, z = plugin.last_projection, plugin.last_projection.gradient
            violated = bool((projection.dots < 0).any())
            seen = (float(violated), projection.relative_change, projection.cosine)
            by_experience[strategy.experience.current_experience].append(seen)
            assert z.isfinite().all()

    plugin = MGEMPlugin(8, parameter_groups="layer", memory_groups=2, restrict=restrict)
    metric = RestrictionMetric(minibatch=True)
    keeper = run([plugin, Call(after_training_iteration=note)], metric)
    assert by_experience[0] == []  # there was no memory yet
    everything = [*by_experience[1], *by_experience[2]]
    assert sum(violated for violated, _, _ in everything) > 0
    for column, name in enumerate(NAMES):
        values = [seen[column] for seen in everything]
        assert keeper.of(name, "_MB") == values
        assert metric.result()[name] == pytest.approx(np.mean(values))
        expected = [np.mean([seen[column] for seen in by_experience[t]]) for t in (1, 2)]
        assert keeper.of(name) == pytest.approx(expected)


def test_nothing_is_emitted_where_nothing_is_restricted():
    (metric,) = restriction_metrics()
    assert run([], metric).values == {}
    assert metric.result() == {}


class FixedProjection(SupervisedPlugin):
    """Shows a projection that halved the gradient."""

    last_projection = Projection(
        gradient=torch.ones(2),
        dots=torch.tensor([[-1.0, 1.0]], dtype=torch.float64),
        dual=torch.zeros(1, 2, dtype=torch.float64),
        relative_change=0.5,
        cosine=1.0,
        module_change=torch.tensor([0.5], dtype=torch.float64),
        module_cosine=torch.tensor([1.0], dtype=torch.float64),
    )


def test_any_plugin_that_shows_its_projection_is_read():
    metric = RestrictionMetric()
    run([FixedProjection()], metric)
    assert metric.result() == {
        "ViolatedIterations": 1.0,
        "ViolatedRows": 0.5,
        "RelativeChange": 0.5,
        "Cosine": 1.0,
        "Dual": 0.0,
        "SolverRetries": 0.0,
        "Push": 0.0,
    }
    metric.reset()
    assert metric.result() == {}


def test_modules_have_their_own_means():
    seen = []

    def note(strategy):
        if plugin.last_projection is not None:
            seen.append((strategy.experience.current_experience, plugin.last_projection))

    plugin = MGEMPlugin(8, parameter_groups="layer", memory_groups=2, seed=0)
    keeper = run(
        [plugin, Call(after_training_iteration=note)],
        RestrictionMetric(modules=True, histograms=True),
    )
    assert {p.module_names for _, p in seen} == {("0", "2")}
    for index, module in enumerate(("0", "2")):
        for name, of in (
            ("ViolatedRows", lambda p: p.violated_rows.double().mean(dim=1)),
            ("RelativeChange", lambda p: p.module_change),
            ("Cosine", lambda p: p.module_cosine),
            ("Dual", lambda p: p.dual.mean(dim=1)),
        ):
            values = keeper.values[f"Restriction_{name}/train_phase/train_stream/{module}"]
            expected = [
                np.mean([float(of(p)[index]) for t, p in seen if t == task]) for task in (1, 2)
            ]
            assert values == pytest.approx(expected)
    duals = keeper.of("DualVariables")
    for task, emitted in zip((1, 2), duals, strict=True):
        rows = [p.dual[p.violated_rows.any(dim=1)].numel() for t, p in seen if t == task]
        assert emitted.numel() == sum(rows)


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_the_time_of_each_part_is_told(restrict):
    metric = RestrictionMetric()
    keeper = run([MGEMPlugin(8, restrict=restrict, seed=0)], metric)
    for part in ("memory", "projection"):
        assert len(keeper.of(f"Seconds_{part}")) == 2
        assert metric.result()[f"Seconds_{part}"] > 0


def test_solves_that_needed_a_larger_ridge_are_counted():
    solver = Stubborn()
    keeper = run(
        [MGEMPlugin(8, 0.0, parameter_groups="tensor", memory_groups=4, solver=solver, seed=0)],
        RestrictionMetric(minibatch=True),
    )
    counted = keeper.of("SolverRetries", "_MB")
    assert solver.retries > 0
    assert sum(counted) == solver.retries
