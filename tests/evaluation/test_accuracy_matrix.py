"""The accuracy matrix, filled by Avalanche, against accuracies taken by hand."""

import csv
import math

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import class_stream, domain_stream, make_model, sgd
from torch import nn

from avalanche_mgem.evaluation import (
    AccuracyMatrix,
    ScalarCSVLogger,
    accuracy_matrix_metrics,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    minimum_accuracy,
    worst_case_accuracy,
)
from avalanche_mgem.evaluation.heat_map import heat_map


class Keeper:
    """A logger that keeps what was emitted last, by name, and all names of each evaluation."""

    def __init__(self):
        self.last = {}

    def log_metrics(self, values):
        self.last |= {value.name: value.value for value in values}


def naive(*metrics, loggers=()):
    model = make_model()
    evaluator = EvaluationPlugin(*metrics, loggers=[*loggers] or [Keeper()])
    return Naive(
        model=model,
        optimizer=sgd(model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=7,
        evaluator=evaluator,
    )


def accuracy_by_hand(model, experience):
    model.eval()
    hits = [int(model(x.unsqueeze(0)).argmax()) == y for x, y, *_ in experience.dataset]
    return sum(hits) / len(hits)


def row_by_hand(strategy, stream):
    with torch.no_grad():
        return [accuracy_by_hand(strategy.model, experience) for experience in stream]


def evaluated_run(strategy, scenario):
    """Train on the stream, evaluate before and after each experience; return the rows by hand."""
    strategy.eval(scenario.test_stream)
    rows = [row_by_hand(strategy, scenario.test_stream)]
    for experience in scenario.train_stream:
        strategy.train(experience)
        strategy.eval(scenario.test_stream)
        rows.append(row_by_hand(strategy, scenario.test_stream))
    return rows


def test_r_holds_the_accuracies_after_each_experience():
    metric, scenario = AccuracyMatrix(), domain_stream()
    baseline, *rows = evaluated_run(naive(metric), scenario)
    np.testing.assert_allclose(metric.result(), rows, atol=1e-7)
    np.testing.assert_allclose(metric.baseline(), baseline, atol=1e-7)


def test_scores_arrive_in_tensorboard_and_csv_under_their_names(tmp_path):
    (metric,) = accuracy_matrix_metrics()
    loggers = [TensorboardLogger(tmp_path / "board"), ScalarCSVLogger(tmp_path / "all.csv")]
    evaluated_run(naive(metric, loggers=loggers), domain_stream())
    loggers[0].writer.close()
    R, baseline = metric.result(), metric.baseline()
    expected = {
        "ACC": average_accuracy(R),
        "LA": learning_accuracy(R),
        "BWT": backward_transfer(R),
        "Forgetting": forgetting(R),
        "FWT": forward_transfer(R, baseline),
        "AIA": average_incremental_accuracy(R),
        "MIN_ACC": minimum_accuracy(R),
        "WC_ACC": worst_case_accuracy(R),
        "ACC_TaskIL": average_accuracy(metric.task_masked()),
    }
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    with (tmp_path / "all.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for score, value in expected.items():
        name = f"{score}/eval_phase/test_stream"
        board = events.Scalars(name)
        table = [line for line in lines if line["metric"] == name]
        assert board[-1].value == pytest.approx(value, abs=1e-6)
        assert float(table[-1]["value"]) == value
        assert len(board) == len(table) == 4
        assert [event.step for event in board] == [int(line["step"]) for line in table]
        # Nothing but the accuracies is known before the first task, and no transfer after it.
        unknown = {"ACC": 0, "ACC_TaskIL": 0, "LA": 1, "AIA": 1, "WC_ACC": 1}.get(score, 2)
        assert [math.isnan(event.value) for event in board] == [i < unknown for i in range(4)]
        assert [line["value"] == "nan" for line in table] == [i < unknown for i in range(4)]


def test_scores_are_of_the_tasks_trained_so_far():
    keeper, metric, scenario = Keeper(), AccuracyMatrix(), domain_stream()
    strategy = naive(metric, loggers=[keeper])
    for count, experience in enumerate(scenario.train_stream, start=1):
        strategy.train(experience)
        strategy.eval(scenario.test_stream)
        so_far = metric.result()[:count, :count]
        assert keeper.last["ACC/eval_phase/test_stream"] == average_accuracy(so_far)
        assert keeper.last["LA/eval_phase/test_stream"] == learning_accuracy(so_far)
    # Nothing was evaluated before training.
    assert math.isnan(keeper.last["FWT/eval_phase/test_stream"])


def test_without_some_tasks_their_scores_are_nan():
    keeper, metric, scenario = Keeper(), AccuracyMatrix(), domain_stream()
    strategy = naive(metric, loggers=[keeper])
    strategy.train(scenario.train_stream[0])
    strategy.train(scenario.train_stream[1])
    strategy.eval(scenario.test_stream[:2])
    assert keeper.last["ACC/eval_phase/test_stream"] == metric.result()[1, :2].mean()
    assert math.isnan(keeper.last["LA/eval_phase/test_stream"])
    assert np.isnan(metric.result()[0]).all()


def test_a_later_evaluation_takes_the_place_of_an_earlier_one():
    metric, scenario = AccuracyMatrix(), domain_stream()
    strategy = naive(metric)
    strategy.train(scenario.train_stream[0], eval_streams=[scenario.test_stream])
    for parameter in strategy.model.parameters():
        nn.init.zeros_(parameter)
    strategy.eval(scenario.test_stream)
    np.testing.assert_allclose(
        metric.result()[0], row_by_hand(strategy, scenario.test_stream), atol=1e-7
    )


def test_streams_are_kept_apart():
    keeper, metric, scenario = Keeper(), AccuracyMatrix(), domain_stream()
    strategy = naive(metric, loggers=[keeper])
    strategy.train(scenario.train_stream[0])
    strategy.eval([*scenario.test_stream, *scenario.train_stream])
    for stream in (scenario.test_stream, scenario.train_stream):
        np.testing.assert_allclose(
            metric.result(stream.name)[0], row_by_hand(strategy, stream), atol=1e-7
        )
        own = metric.result(stream.name)[0, 0]
        assert keeper.last[f"ACC/eval_phase/{stream.name}_stream"] == own


def test_parts_of_an_experience_count_as_the_experience():
    metric, scenario = AccuracyMatrix(), domain_stream()
    strategy, rows = naive(metric), []
    for experience in scenario.train_stream:
        for part in split_online_stream([experience], experience_size=10):
            strategy.train(part)
        strategy.eval(scenario.test_stream)
        rows.append(row_by_hand(strategy, scenario.test_stream))
    np.testing.assert_allclose(metric.result(), rows, atol=1e-7)


def test_reset_forgets():
    metric, scenario = AccuracyMatrix(), class_stream()
    strategy = naive(metric)
    strategy.train(scenario.train_stream[0])
    strategy.eval(scenario.test_stream)
    metric.reset()
    assert metric.result().shape == (0, 0)
    strategy.eval(scenario.test_stream)
    assert not np.isnan(metric.baseline()).any()
    assert all(math.isnan(value) for value in metric.result().ravel())


def test_rows_and_columns_are_in_the_order_of_training():
    metric, keeper, scenario = AccuracyMatrix(), Keeper(), domain_stream()
    strategy, order = naive(metric, loggers=[keeper]), [2, 0]
    rows = []
    for index in order:
        strategy.train(scenario.train_stream[index])
        strategy.eval(scenario.test_stream)
        by_hand = row_by_hand(strategy, scenario.test_stream)
        rows.append([by_hand[task] for task in (2, 0, 1)])
    np.testing.assert_allclose(metric.result()[:2], rows, atol=1e-7)
    assert np.isnan(metric.result()[2]).all()
    seen = np.array(rows)[:, :2]
    assert keeper.last["ACC/eval_phase/test_stream"] == pytest.approx(average_accuracy(seen))
    assert keeper.last["LA/eval_phase/test_stream"] == pytest.approx(learning_accuracy(seen))
    assert keeper.last["BWT/eval_phase/test_stream"] == pytest.approx(backward_transfer(seen))


def test_a_task_trained_again_is_no_new_task():
    metric, keeper, scenario = AccuracyMatrix(), Keeper(), domain_stream()
    strategy = naive(metric, loggers=[keeper])
    rows = []
    for index in (0, 1, 0):
        strategy.train(scenario.train_stream[index])
        strategy.eval(scenario.test_stream)
        rows.append(row_by_hand(strategy, scenario.test_stream))
    np.testing.assert_allclose(metric.result()[:2], [rows[0], rows[2]], atol=1e-7)
    assert keeper.last["ACC/eval_phase/test_stream"] == pytest.approx(np.mean(rows[2][:2]))


def test_the_heat_map_reaches_tensorboard(tmp_path):
    scenario, board = domain_stream(), TensorboardLogger(tmp_path)
    strategy = naive(*accuracy_matrix_metrics(heat_map=True), loggers=[board])
    evaluated_run(strategy, scenario)
    board.writer.close()
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    assert log.Tags()["images"] == ["AccuracyMatrix/eval_phase/test_stream"]


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_heat_map_shows_every_measured_number_once(size):
    accuracy = np.random.default_rng(0).random((size, size))
    accuracy[np.triu_indices(size, 1)] = math.nan
    texts = [text.get_text() for text in heat_map(accuracy).axes[0].texts]
    shown = sorted(text for text in texts if text)
    measured = accuracy[~np.isnan(accuracy)]
    assert shown == (sorted(f"{value:.2f}" for value in measured) if size < 20 else [])
