"""R and its scores however a stream is trained and evaluated, against accuracies by hand."""

import math

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import (
    split_continuous_linear_decay_stream,
    split_online_stream,
)
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Cumulative, JointTraining, Naive
from tiny import class_stream, domain_stream, make_model, sgd, tiny_data
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_mgem.evaluation import AccuracyMatrix
from avalanche_mgem.evaluation.heat_map import heat_map

SCORES = ("ACC", "ACC_TaskIL", "LA", "BWT", "Forgetting", "FWT", "AIA", "MIN_ACC", "WC_ACC")
OF_TASKS = SCORES[2:]


def naive(*metrics, strategy=Naive, **arguments):
    model = make_model()
    return strategy(
        model=model,
        optimizer=sgd(model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=7,
        evaluator=EvaluationPlugin(*metrics),
        **arguments,
    )


@torch.no_grad()
def by_hand(strategy, experience):
    training = strategy.model.training
    strategy.model.eval()
    hits = [int(strategy.model(x[None]).argmax()) == y for x, y, *_ in experience.dataset]
    strategy.model.train(training)
    return sum(hits) / len(hits)


def emitted(values, stream="test"):
    """What the last evaluation emitted; every score has to be there."""
    return {name: values[f"{name}/eval_phase/{stream}_stream"] for name in SCORES}


def nothing_but_acc(scores):
    return all(math.isnan(scores[name]) for name in OF_TASKS)


@pytest.mark.parametrize("make", [domain_stream, class_stream])
def test_scores_are_to_the_bit_those_of_avalanches_accuracies(make):
    """The definitions, written out over what Avalanche's own metric says of each experience."""
    scenario, metric = make(), AccuracyMatrix()
    strategy = naive(metric, accuracy_metrics(experience=True))

    def row(values):
        name = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{:03d}"
        return [values[name.format(i)] for i in range(3)]

    baseline, R = np.array(row(strategy.eval(scenario.test_stream))), []
    for count, experience in enumerate(scenario.train_stream, start=1):
        strategy.train(experience)
        values = strategy.eval(scenario.test_stream)
        R.append(row(values))
        done, scores = np.array(R)[:, :count], emitted(values)
        assert scores["ACC"] == done[-1].mean()
        assert scores["LA"] == np.diagonal(done).mean()
        if count > 1:
            assert scores["BWT"] == (done[-1] - np.diagonal(done))[:-1].mean()
            ahead = np.diagonal(done, offset=1) - baseline[1:count]
            assert scores["FWT"] == ahead.mean()
    np.testing.assert_array_equal(metric.result(), R)
    np.testing.assert_array_equal(metric.baseline(), baseline)


@pytest.mark.parametrize("make", [domain_stream, class_stream])
@pytest.mark.parametrize(
    "chosen", [lambda i: [i], lambda i: [0], lambda i: [0, 2], lambda i: [2, 1], lambda i: []]
)
def test_acc_is_of_what_is_evaluated_now(make, chosen):
    scenario = make()
    strategy = naive(AccuracyMatrix())
    for index, experience in enumerate(scenario.train_stream):
        strategy.train(experience)
        part = [scenario.test_stream[i] for i in chosen(index)]
        values = strategy.eval(part)
        if not part:
            assert not values or "ACC/eval_phase/test_stream" not in values
            continue
        trained = [e for e in part if e.current_experience <= index] or part
        expected = np.mean([by_hand(strategy, e) for e in trained])
        scores = emitted(values)
        assert scores["ACC"] == pytest.approx(expected)
        if {e.current_experience for e in trained} < set(range(index + 1)):
            assert math.isnan(scores["AIA"])
            assert math.isnan(scores["WC_ACC"])


def test_no_score_outlives_the_evaluation_that_it_is_of():
    scenario = domain_stream()
    strategy = naive(AccuracyMatrix())
    strategy.eval(scenario.test_stream)
    for experience in scenario.train_stream:
        strategy.train(experience)
        full = emitted(strategy.eval(scenario.test_stream))
    assert all(map(math.isfinite, full.values()))
    strategy.train(scenario.train_stream[0])  # the model is another one now
    part = emitted(strategy.eval(scenario.test_stream[1:2]))
    assert part["ACC"] == pytest.approx(by_hand(strategy, scenario.test_stream[1]))
    assert all(math.isnan(part[name]) for name in OF_TASKS if name != "FWT")
    assert part["FWT"] == full["FWT"]  # of what was evaluated before a task was trained


def test_bwt_needs_the_earlier_tasks_alone():
    scenario = domain_stream()
    strategy, rows = naive(AccuracyMatrix()), []
    for index, experience in enumerate(scenario.train_stream):
        strategy.train(experience)
        scores = emitted(strategy.eval(scenario.test_stream[: index + 1 - (index == 2)]))
        rows.append([by_hand(strategy, e) for e in scenario.test_stream])
    R = np.array(rows)
    assert scores["BWT"] == pytest.approx((R[2] - np.diagonal(R))[:2].mean())
    assert math.isnan(scores["LA"])


def test_experiences_evaluated_one_by_one_fill_a_row():
    scenario, metric = domain_stream(), AccuracyMatrix()
    strategy = naive(metric)
    for count, experience in enumerate(scenario.train_stream, start=1):
        strategy.train(experience)
        for test in scenario.test_stream:
            scores = emitted(strategy.eval(test))
            assert scores["ACC"] == pytest.approx(by_hand(strategy, test))
        row = [by_hand(strategy, test) for test in scenario.test_stream]
        np.testing.assert_allclose(metric.result()[count - 1], row)
        assert math.isfinite(scores["LA"])
        assert math.isfinite(scores["BWT"]) == (count > 1)


def test_slices_are_known_by_their_place_in_the_stream():
    scenario, metric = domain_stream(), AccuracyMatrix()
    strategy = naive(metric)
    strategy.train(scenario.train_stream[1:3])
    strategy.eval(scenario.test_stream[1:])
    row = [by_hand(strategy, e) for e in scenario.test_stream[1:]]
    np.testing.assert_allclose(metric.result()[1], row)


def test_training_and_test_stream_each_have_their_scores():
    scenario = domain_stream()
    strategy = naive(AccuracyMatrix())
    for experience in scenario.train_stream:
        strategy.train(experience)
        strategy.eval(scenario.train_stream)
        values = strategy.eval([scenario.test_stream[0], *scenario.train_stream])
    test, train = emitted(values), emitted(values, "train")
    assert test["ACC"] == pytest.approx(by_hand(strategy, scenario.test_stream[0]))
    assert math.isnan(test["BWT"])
    expected = np.mean([by_hand(strategy, e) for e in scenario.train_stream])
    assert train["ACC"] == pytest.approx(expected)
    assert math.isfinite(train["BWT"])
    values = strategy.eval(scenario.train_stream[:1])
    assert emitted(values)["ACC"] == test["ACC"]  # not evaluated: it is what was said of it


def test_an_evaluation_may_be_repeated_and_before_any_training():
    scenario, metric = domain_stream(), AccuracyMatrix()
    strategy = naive(metric)
    first, second = (emitted(strategy.eval(scenario.test_stream)) for _ in range(2))
    np.testing.assert_equal(first, second)
    assert first["ACC"] == pytest.approx(
        np.mean([by_hand(strategy, e) for e in scenario.test_stream])
    )
    assert nothing_but_acc(first)
    strategy.train(scenario.train_stream[0])
    one, two = (emitted(strategy.eval(scenario.test_stream)) for _ in range(2))
    np.testing.assert_equal(one, two)
    np.testing.assert_allclose(metric.baseline().mean(), first["ACC"])


def test_a_generator_of_experiences_can_be_evaluated():
    scenario = domain_stream()
    strategy = naive(AccuracyMatrix())
    strategy.train(scenario.train_stream[0])
    scores = emitted(strategy.eval(experience for experience in scenario.test_stream))
    assert scores["ACC"] == pytest.approx(by_hand(strategy, scenario.test_stream[0]))


@pytest.mark.parametrize("mode", ["epoch", "iteration"])
@pytest.mark.parametrize("every", [0, 1, 2])
def test_periodic_evaluation_leaves_the_same_r(mode, every):
    scenario, metric, plain = domain_stream(), AccuracyMatrix(), AccuracyMatrix()
    watched = naive(metric, eval_every=every, peval_mode=mode, train_epochs=2)
    alone = naive(plain, train_epochs=2)
    for experience in scenario.train_stream:
        for strategy in (alone, watched):
            torch.manual_seed(5)
            kwargs = {"shuffle": False}  # evaluations draw from the global random state
            if strategy is watched:
                strategy.train(experience, eval_streams=[scenario.test_stream], **kwargs)
            else:
                strategy.train(experience, **kwargs)
                strategy.eval(scenario.test_stream)
    np.testing.assert_array_equal(metric.result(), plain.result())
    lowest, rows = metric.lowest(), plain.lowest()
    assert np.isnan(lowest[-1])
    assert np.isnan(rows[-1])
    assert (lowest[:-1] <= rows[:-1]).all()


def test_the_lowest_accuracy_is_of_every_evaluation_after_the_task():
    scenario, metric = domain_stream(), AccuracyMatrix()
    seen = {0: [], 1: [], 2: []}
    strategy = naive(metric, eval_every=1, peval_mode="iteration")
    original = metric.after_eval

    def note(given):
        for task, test in enumerate(scenario.test_stream):
            if task < len(metric._progress.trained) - 1:
                seen[task].append(by_hand(given, test))
        return original(given)

    metric.after_eval = note
    for experience in scenario.train_stream:
        strategy.train(experience, eval_streams=[scenario.test_stream])
    np.testing.assert_allclose(metric.lowest()[:2], [min(seen[0]), min(seen[1])])
    assert math.isnan(metric.lowest()[2])


@pytest.mark.parametrize("strategy", [JointTraining, Cumulative])
def test_joint_training_trains_all_tasks_at_once(strategy):
    scenario, metric = class_stream(), AccuracyMatrix()
    strategy = naive(metric, strategy=strategy)
    strategy.train(scenario.train_stream)
    scores = emitted(strategy.eval(scenario.test_stream))
    row = [by_hand(strategy, e) for e in scenario.test_stream]
    np.testing.assert_allclose(metric.result()[-1], row)
    assert scores["ACC"] == pytest.approx(np.mean(row))
    assert np.isnan(metric.result()[:-1]).all()
    assert all(math.isnan(scores[name]) for name in OF_TASKS)


def test_an_online_stream_has_the_tasks_it_was_cut_from():
    scenario, metric = class_stream(), AccuracyMatrix()
    strategy = naive(metric)
    strategy.eval(scenario.test_stream)
    for experience in scenario.train_stream:
        for part in split_online_stream([experience], experience_size=8):
            strategy.train(part)
            scores = emitted(strategy.eval(scenario.test_stream))
    rows = metric.result()
    assert rows.shape == (3, 3)
    assert scores["ACC"] == rows[-1].mean()
    assert all(map(math.isfinite, scores.values()))
    assert (metric.lowest()[:2] <= rows[-1][:2]).all()


def test_parts_of_one_experience_are_evaluated_as_one():
    scenario, metric = class_stream(), AccuracyMatrix()
    strategy = naive(metric)
    strategy.train(scenario.train_stream[0])
    parts = list(split_online_stream(scenario.train_stream[:1], experience_size=9, shuffle=False))
    strategy.eval(parts)
    np.testing.assert_allclose(
        metric.result("train_online")[0, 0], by_hand(strategy, scenario.train_stream[0])
    )


def blurry(scenario, parts=4):
    return split_continuous_linear_decay_stream(
        scenario.train_stream,
        experience_size=8,
        iters_per_virtual_epoch=parts,
        beta=4,
        shuffle=True,
    )


@pytest.mark.parametrize("make", [domain_stream, class_stream])
def test_a_blurry_stream_has_a_row_for_each_training_experience(make):
    scenario, metric = make(), AccuracyMatrix()
    strategy, rows = naive(metric), []
    baseline = emitted(strategy.eval(scenario.test_stream))
    for part in blurry(scenario):
        strategy.train(part)
        scores = emitted(strategy.eval(scenario.test_stream))
        rows.append([by_hand(strategy, e) for e in scenario.test_stream])
        assert scores["ACC"] == pytest.approx(np.mean(rows[-1]))
        assert nothing_but_acc(scores)
    np.testing.assert_allclose(metric.result(), rows)
    assert metric.result().shape == metric.task_masked().shape == (12, 3)
    assert metric.baseline().mean() == pytest.approx(baseline["ACC"])
    assert (metric.task_masked() >= metric.result()).all()


def sets(n, size=12):
    data = tiny_data()
    for start in range(0, n * size, size):
        chosen = [i % len(data.x_train) for i in range(start, start + size)]
        yield AvalancheDataset([TensorDataset(data.x_train[chosen], data.y_train[chosen])])


@pytest.mark.parametrize(("n_train", "n_test"), [(5, 1), (6, 3), (1, 4)])
def test_streams_of_other_lengths_have_no_task_for_each_experience(n_train, n_test):
    scenario = benchmark_from_datasets(train=[*sets(n_train)], test=[*sets(n_test)])
    metric = AccuracyMatrix()
    strategy, rows = naive(metric), []
    for experience in scenario.train_stream:
        strategy.train(experience)
        scores = emitted(strategy.eval(scenario.test_stream))
        rows.append([by_hand(strategy, e) for e in scenario.test_stream])
        assert scores["ACC"] == pytest.approx(np.mean(rows[-1]))
        assert nothing_but_acc(scores)
        part = emitted(strategy.eval(scenario.test_stream[-1:]))
        assert part["ACC"] == pytest.approx(rows[-1][-1])
    np.testing.assert_allclose(metric.result(), rows)


def test_test_experiences_beyond_the_trained_ones_come_last():
    scenario = benchmark_from_datasets(train=[*sets(2)], test=[*sets(3)])
    metric = AccuracyMatrix()
    strategy = naive(metric)
    for experience in scenario.train_stream:
        strategy.train(experience)
        scores = emitted(strategy.eval(scenario.test_stream))
    assert scores["ACC"] == metric.result()[1, :2].mean()
    assert math.isfinite(scores["BWT"])
    assert metric.result().shape == (3, 3)


def test_classes_known_of_the_task_are_the_choice_of_the_masked_accuracy():
    scenario, metric = class_stream(), AccuracyMatrix()
    strategy = naive(metric)
    for experience in scenario.train_stream:
        strategy.train(experience)
        scores = emitted(strategy.eval(scenario.test_stream))
    expected = []
    for experience in scenario.test_stream:
        own = sorted(experience.classes_in_this_experience)
        x, y = zip(*((item[0], item[1]) for item in experience.dataset), strict=True)
        answers = strategy.model(torch.stack(x))[:, own].argmax(1)
        hits = [own[a] == int(b) for a, b in zip(answers, y, strict=True)]
        expected.append(np.mean(hits))
    np.testing.assert_allclose(metric.task_masked()[-1], expected)
    assert scores["ACC_TaskIL"] == pytest.approx(np.mean(expected))
    assert scores["ACC_TaskIL"] > scores["ACC"] + 0.2


def test_where_all_tasks_have_all_classes_masking_changes_nothing():
    scenario, metric = domain_stream(), AccuracyMatrix()
    strategy = naive(metric)
    strategy.train(scenario.train_stream[0])
    strategy.eval(scenario.test_stream)
    np.testing.assert_array_equal(metric.task_masked(), metric.result())


def test_where_the_classes_are_not_told_there_is_no_masked_accuracy():
    scenario = benchmark_from_datasets(train=[*sets(2)], test=[*sets(2)])
    metric = AccuracyMatrix()
    strategy = naive(metric)
    strategy.train(scenario.train_stream[0])
    scores = emitted(strategy.eval(scenario.test_stream))
    assert math.isnan(scores["ACC_TaskIL"])
    assert np.isnan(metric.task_masked()).all()


def test_a_small_test_set_does_not_make_the_choice_easier():
    """Classes that a task was trained on are its own, tested or not."""
    data = tiny_data()

    def only(*classes):
        kept = [i for i, y in enumerate(data.y_train) if int(y) in classes]
        x, y = data.x_train[kept], data.y_train[kept]
        given = AvalancheDataset([TensorDataset(x, y)])
        given.targets = y.tolist()
        return given

    scenario = benchmark_from_datasets(train=[only(0, 1), only(2, 3)], test=[only(0), only(2)])
    metric = AccuracyMatrix()
    strategy = naive(metric)
    for experience in scenario.train_stream:
        strategy.train(experience)
        strategy.eval(scenario.test_stream)
    x, y = zip(*((item[0], item[1]) for item in scenario.test_stream[0].dataset), strict=True)
    right = strategy.model(torch.stack(x))[:, :2].argmax(1) == torch.stack(y)
    assert metric.task_masked()[1, 0] == pytest.approx(right.float().mean().item())


def test_a_heat_map_need_not_be_square():
    accuracy = np.random.default_rng(0).random((5, 2))
    texts = [text.get_text() for text in heat_map(accuracy).axes[0].texts]
    assert texts == [f"{value:.2f}" for value in accuracy.flat]
