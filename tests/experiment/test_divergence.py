"""A run that becomes NaN or Inf ends, says in which experience, and has no scores."""

import csv
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from rich.console import Console
from run_cases import MODEL, STREAMS, TRAINING, growing_model, permuted, specification
from tiny import N_CLASSES
from torch import nn

from avalanche_mgem.experiment import Method, compare, find_method
from avalanche_mgem.experiment.divergence import Divergence
from avalanche_mgem.experiment.run import run
from avalanche_mgem.plugins import MGEMPlugin
from avalanche_mgem.results.result import RunResult

FAST = replace(TRAINING, learning_rate=1e30)


class Spoils(SupervisedPlugin):
    """Calls `spoil(strategy)` once, at that event of that experience."""

    def __init__(self, event, spoil, experience):
        super().__init__()
        self._todo = True

        def once(strategy, **kwargs):
            if self._todo and strategy.clock.train_exp_counter == experience:
                self._todo = False
                spoil(strategy)

        setattr(self, event, once)


def spoilt(event, spoil, experience=1, beside=()):
    def strategy(**arguments):
        return Naive(plugins=[*beside, Spoils(event, spoil, experience)], **arguments)

    return Method("spoilt", strategy)


@torch.no_grad()
def spoil_weight(strategy, value=math.nan):
    next(strategy.model.parameters())[0, 0] = value


def spoil_loss(strategy, value=math.inf):
    strategy.loss = strategy.loss + value  # of which the gradient is finite


def fail_on_nan(strategy):
    spoil_weight(strategy)
    raise ValueError("matrix G is not positive definite")


class Masked(nn.Module):
    """Has buffers that are not finite by intention, and one of integers."""

    def __init__(self, n_features):
        super().__init__()
        self.layer = nn.Linear(n_features, N_CLASSES)
        self.norm = nn.BatchNorm1d(N_CLASSES)
        self.register_buffer("mask", torch.full((2,), -math.inf))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))

    def forward(self, x):
        return self.norm(self.layer(x)) + self.mask.exp()[0]


def masked_model(sample_shape, n_classes):
    return Masked(*sample_shape)


def spoil_statistics(strategy):
    strategy.model.norm.running_var[0] = math.inf


def ewc(ewc_lambda):
    return find_method("ewc").variant("ewc", ewc_lambda=ewc_lambda)


DIVERGED = {
    "a penalty": (specification(ewc(1e30)), 1),
    "a learning rate": (specification("naive", training=FAST), 0),
    "a memory row or gradient, which our plugins refuse": (
        specification("mgem-d", training=FAST),
        0,
    ),
    "a weight": (specification(spoilt("after_training_exp", spoil_weight)), 1),
    "a weight that is Inf": (
        specification(spoilt("before_training_exp", lambda s: spoil_weight(s, math.inf), 2)),
        2,
    ),
    "a loss whose gradient is finite": (specification(spoilt("before_backward", spoil_loss)), 1),
    "running statistics": (
        specification(spoilt("after_training_exp", spoil_statistics), model=masked_model),
        1,
    ),
    "an error on NaN": (specification(spoilt("before_update", fail_on_nan)), 1),
    "outputs of weights that are finite": (
        specification(
            spoilt(
                "after_training_exp", lambda s: [p.data.fill_(3e38) for p in s.model.parameters()]
            )
        ),
        1,
    ),
}


@pytest.mark.parametrize("what", DIVERGED)
def test_it_ends_where_it_diverged_and_has_no_scores(what):
    given, experience = DIVERGED[what]
    result = run(given)
    assert result.diverged == experience
    assert result.accuracy.shape == (3, 3)
    assert np.isfinite(result.accuracy[:experience]).all()
    assert np.isnan(result.accuracy[experience:]).all()
    assert np.isfinite(result.baseline).all()
    assert np.isnan(list(result.scores.values())).all()
    assert RunResult.from_json(result.to_json()).diverged == experience


def test_heads_that_grow_leave_a_whole_matrix():
    result = run(
        specification(
            spoilt("after_training_exp", spoil_weight), stream=STREAMS["split"], model=growing_model
        )
    )
    assert (result.diverged, result.accuracy.shape, result.baseline.shape) == (1, (3, 3), (3,))
    assert np.isfinite(result.accuracy[0, 0])
    assert np.isnan(result.accuracy[1:]).all()


def test_joint_training_diverges_in_its_only_experience():
    result = run(specification("joint", training=FAST))
    assert result.diverged == 0
    assert np.isnan(result.accuracy).all()


class NaNOutputs(nn.Linear):
    """Whose outputs in evaluation are NaN for a while."""

    for_now = False

    def forward(self, x):
        return super().forward(x) * (math.nan if self.for_now and not self.training else 1.0)


def nan_outputs(strategy, value):
    strategy.model.for_now = value


@pytest.mark.parametrize("every", [None, 1])
def test_a_run_ends_the_same_however_often_it_is_evaluated(every):
    """Of what an evaluation in the middle of an experience shows, training knows nothing."""
    training = replace(TRAINING, eval_every=every)

    def strategy(plugins=(), **arguments):
        begin = Spoils("before_training_exp", lambda s: nan_outputs(s, True), 1)
        end = Spoils("after_training_exp", lambda s: nan_outputs(s, False), 1)
        spoil = Spoils("after_training_exp", spoil_weight, 2)
        return Naive(plugins=[begin, *plugins, end, spoil], **arguments)

    given = specification(
        Method("spoilt", strategy),
        model=lambda shape, classes: NaNOutputs(*shape, classes),
        training=training,
    )
    result = run(given)
    assert result.diverged == 2
    assert np.isfinite(result.accuracy[:2]).all()
    if every is not None:
        back = RunResult.from_json(result.to_json()).curve
        assert back.accuracy.shape == (len(back.trained), 3)
        assert set(back.trained) == {0, 1, 2}


def test_the_loss_is_looked_at_within_an_experience(monkeypatch):
    """Not only at its end: of a long one, most is not trained for nothing."""
    monkeypatch.setattr("avalanche_mgem.experiment.divergence._PERIOD", 2)
    iterations = []

    class Counts(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            iterations.append(strategy.clock.train_exp_counter)

    beside = (Counts(), Spoils("before_backward", spoil_loss, 1))
    method = Method("spoilt", lambda **arguments: Naive(plugins=list(beside), **arguments))
    assert run(specification(method, training=replace(TRAINING, batch_size=1))).diverged == 1
    assert iterations.count(0) == 24
    assert iterations.count(1) == 2


def test_what_is_not_finite_by_intention_is_no_divergence():
    result = run(specification(model=masked_model))
    assert result.diverged is None
    assert np.isfinite(list(result.scores.values())).all()


def test_an_error_beside_such_values_is_no_divergence():
    def fail(strategy):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        run(specification(spoilt("before_training", fail), model=masked_model))


def test_parameters_without_values_are_not_asked():
    divergence = Divergence()
    divergence.start(SimpleNamespace(model=nn.LazyLinear(3), plugins=[]))
    assert not divergence.explains(
        ValueError(), SimpleNamespace(model=nn.LazyLinear(3), plugins=[])
    )


def test_steps_that_are_skipped_are_no_divergence():
    mgem = MGEMPlugin(4, on_nonfinite="skip")
    result = run(specification(spoilt("before_backward", spoil_loss, beside=[mgem])))
    assert mgem.skipped_steps == 1
    assert result.diverged is None


def test_other_errors_are_errors():
    def fail(strategy):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        run(specification(spoilt("before_update", fail)))


@pytest.mark.usefixtures("without_figures")
def test_a_comparison_counts_what_diverged(tmp_path):
    file = io.StringIO()
    results = compare(
        ["naive", "ewc"],
        stream=permuted,
        seeds=2,
        model=MODEL,
        training=TRAINING,
        settings={"ewc": {"ewc_lambda": 1e30}},
        out=tmp_path,
        console=Console(file=file, width=100),
    )
    assert [result.diverged for result in results] == [None, None, 1, 1]
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [row["diverged"] for row in rows] == ["", "", "1", "1"]
    assert [row["acc"] == "" for row in rows] == [False, False, True, True]
    assert "ewc, seed 1 diverged in experience 1 (counted from 0)" in file.getvalue()
    assert "2 (2 diverged)" in file.getvalue()
    again = compare(
        ["ewc"],
        stream=permuted,
        seeds=2,
        model=MODEL,
        training=TRAINING,
        settings={"ewc": {"ewc_lambda": 1e30}},
        out=tmp_path,
        console=Console(file=io.StringIO(), width=100),
    )
    assert [result.diverged for result in again] == [1, 1]
