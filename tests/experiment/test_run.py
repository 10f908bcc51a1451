"""One run: every method trains, the same way every time, whoever is watching."""

import csv
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training.determinism.rng_manager import RNGManager
from run_cases import MODEL, STREAMS, TRAINING, dropout_model, growing_model, specification, split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import parameter_vector, tiny_data
from torch import nn

from avalanche_mgem.evaluation import EvaluateEvery
from avalanche_mgem.experiment import METHODS, find_method
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.run import quiet_avalanche, run
from avalanche_mgem.streams import permuted_stream

# Avalanche's synaptic intelligence passes tensors to NumPy's functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

# Adapters are for the models of transformers: see test_text_run.py.
IN_TURN = [n for n, method in METHODS.items() if not method.whole_stream and "lora" not in n]
IN_TURN += ["replay+migu", "mgem-d+migu-update", "gem+mgem-p", "si+lwf+migu"]


def spied(name):
    """The method, and the list of the strategies that it makes."""
    made, method = [], find_method(name)

    def strategy(**arguments):
        made.append(method.strategy(**arguments))
        return made[-1]

    return replace(method, strategy=strategy), made


def untimed(restriction):
    return {name: value for name, value in restriction.items() if "Seconds" not in name}


@pytest.mark.cover
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", IN_TURN)
def test_every_method_trains_and_twice_the_same_way(name, stream):
    one, two = (run(specification(name, stream=STREAMS[stream], seed=3)) for _ in range(2))
    assert one.accuracy.shape == (3, 3)
    assert np.isfinite(list(one.scores.values())).all()
    assert ((one.accuracy >= 0) & (one.accuracy <= 1)).all()
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    np.testing.assert_array_equal(one.baseline, two.baseline)
    np.testing.assert_array_equal(one.masked, two.masked)
    assert (one.masked >= one.accuracy).all()
    assert untimed(one.restriction) == untimed(two.restriction)
    assert bool(one.restriction) == ("mgem" in name or name == "gem-auto")
    assert ("Gating_MaskedShare" in one.metrics) == ("migu" in name)
    assert one.metrics == two.metrics
    assert one.metrics["Distance_Absolute"] > 0
    assert (one.method, one.stream, one.seed) == (name, stream, 3)


@pytest.mark.parametrize(("stream", "model"), [("permuted", MODEL), ("split", growing_model)])
def test_the_whole_stream_is_trained_once_and_fills_the_last_row(stream, model, tmp_path):
    table = tmp_path / "metrics.csv"
    one, two = (
        run(specification("joint", stream=STREAMS[stream], model=model), metrics_csv=table)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    assert one.accuracy.shape == (3, 3)
    assert np.isnan(one.accuracy[:-1]).all()
    assert np.isfinite(one.accuracy[-1]).all()
    assert np.isfinite(one.baseline).all() == (model is MODEL)
    assert one.scores["acc"] == pytest.approx(one.accuracy[-1].mean())
    known = {"acc", "acc_task_il"}
    assert {name for name, score in one.scores.items() if np.isfinite(score)} == known
    with table.open(newline="") as file:
        scores = {line["metric"]: float(line["value"]) for line in csv.DictReader(file)}
    distances = {name for name in scores if name.startswith("Distance_")}
    names = {"ACC": "acc", "ACC_TaskIL": "acc_task_il"}
    assert {n: scores[n] for n in scores.keys() - distances if np.isfinite(scores[n])} == {
        f"{name}/eval_phase/test_stream": one.scores[score] for name, score in names.items()
    }


def test_the_last_row_is_in_the_order_of_the_stream():
    method, made = spied("joint")
    result = run(specification(method, training=replace(TRAINING, epochs=20), stream=split))
    strategy, scenario = made[0], split(0)
    for index, experience in enumerate(scenario.test_stream):
        x, y = zip(*((item[0], item[1]) for item in experience.dataset), strict=True)
        right = strategy.model(torch.stack(x)).argmax(1) == torch.tensor(y)
        assert result.accuracy[-1, index] == pytest.approx(right.float().mean().item())


def test_training_on_all_experiences_is_the_upper_bound():
    long = replace(TRAINING, epochs=20)
    joint, cumulative, naive = (
        run(specification(name, stream=split, training=long)).scores["acc"]
        for name in ("joint", "cumulative", "naive")
    )
    assert min(joint, cumulative) > 0.8
    assert naive < min(joint, cumulative) - 0.1


def test_classes_that_are_only_tested_count():
    def sparse(seed):
        return permuted_stream(tiny_data(), n_experiences=2, train_per_experience=2, seed=seed)

    assert run(specification(stream=sparse)).accuracy.shape == (2, 2)


def test_seeds_differ():
    one, two = (run(specification(seed=seed)) for seed in (0, 1))
    assert not np.array_equal(one.accuracy, two.accuracy)


def trained_unwatched(name, stream, model, seed):
    """The parameters after a plain loop of strategy.train, without metrics and evaluations."""
    RNGManager.set_random_seeds(seed)
    scenario = stream(seed)
    built = model((6,), 6)
    method = find_method(name)
    strategy = method.strategy(
        model=built,
        optimizer=torch.optim.SGD(built.parameters(), lr=TRAINING.learning_rate),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=TRAINING.batch_size,
        train_epochs=TRAINING.epochs,
        evaluator=None,
        **method.resolved_settings(TRAINING.memory, len(scenario.train_stream)),
    )
    whole = method.whole_stream
    for part in [scenario.train_stream] if whole else scenario.train_stream:
        strategy.train(part)
    return parameter_vector(strategy.model)


@pytest.mark.parametrize(
    ("name", "model", "stream"),
    [
        ("naive", dropout_model, STREAMS["permuted"]),
        ("replay", MODEL, STREAMS["permuted"]),
        ("agem", dropout_model, split),
        ("ewc", MODEL, split),
        ("mgem-pd", dropout_model, STREAMS["permuted"]),
        ("naive", growing_model, split),
        ("mgem-d", growing_model, split),
        ("si", dropout_model, split),
        ("lwf", growing_model, split),
        ("gdumb", growing_model, split),
        ("gdumb", dropout_model, STREAMS["permuted"]),
        ("cumulative", MODEL, split),
        ("joint", growing_model, split),
        ("joint", dropout_model, STREAMS["permuted"]),
        ("migu", dropout_model, STREAMS["permuted"]),
        ("migu-random-update", growing_model, split),
        ("replay+migu", dropout_model, split),
    ],
)
def test_watching_does_not_change_the_run(name, model, stream, tmp_path):
    method, made = spied(name)
    run(
        specification(method, stream=stream, model=model, seed=5),
        tensorboard=tmp_path / "board",
        metrics_csv=tmp_path / "metrics.csv",
        progress=lambda _: torch.rand(0),
    )
    alone = trained_unwatched(name, stream, model, seed=5)
    assert torch.equal(parameter_vector(made[0].model), alone)


FAST = ("naive", "replay", "ewc", "lwf", "mgem-d", "migu-update", "hybrid", "joint")
OTHERS = [pytest.param(n, marks=pytest.mark.slow) for n in IN_TURN if n not in FAST]


@pytest.mark.parametrize("name", [*FAST, *OTHERS])
def test_evaluating_within_the_experiences_does_not_change_the_run(name, monkeypatch):
    runs, made = [], []

    def spy(*given):
        made.append(build_strategy(*given))
        return made[-1]

    monkeypatch.setattr("avalanche_mgem.experiment.run.build_strategy", spy)
    for every in (None, 2):
        training = replace(TRAINING, eval_every=every)
        given = specification(name, stream=split, model=growing_model, seed=2, training=training)
        runs.append(run(given))
    plain, watched = runs
    assert torch.equal(*(parameter_vector(strategy.model) for strategy in made))
    np.testing.assert_array_equal(plain.accuracy, watched.accuracy)
    np.testing.assert_array_equal(plain.masked, watched.masked)
    assert untimed(plain.restriction) == untimed(watched.restriction)
    assert plain.metrics == watched.metrics
    assert plain.curve is None
    assert len(watched.curve.iterations) > (1 if name == "joint" else 3)
    ends = {t: i for i, t in zip(watched.curve.iterations, watched.curve.trained, strict=True)}
    if name != "joint":
        assert sorted(ends) == [1, 2, 3]
        for score, value in plain.scores.items():
            if score in ("min_acc", "wc_acc"):
                assert watched.scores[score] <= value
            else:
                np.testing.assert_equal(watched.scores[score], value)


def test_the_curve_of_every_task_is_in_tensorboard(tmp_path):
    given = specification(training=replace(TRAINING, eval_every=2))
    result = run(given, tensorboard=tmp_path)
    events, curve = EventAccumulator(str(tmp_path)).Reload(), result.curve
    for task in range(3):
        points = events.Scalars(f"ACC_Exp/eval_phase/test_stream/Exp00{task}")
        shown = {(point.step, round(point.value, 6)) for point in points}
        kept = zip(curve.iterations, curve.accuracy[:, task], strict=True)
        assert shown == {(at, round(value, 6)) for at, value in kept if np.isfinite(value)}
    last = events.Scalars("WC_ACC/eval_phase/test_stream")[-1].value
    assert last == pytest.approx(result.scores["wc_acc"], abs=1e-6)


def test_the_time_of_evaluations_is_no_training_time(monkeypatch):
    monkeypatch.setattr(
        EvaluateEvery, "seconds", property(lambda _: 100.0, lambda *_: None), raising=False
    )
    result = run(specification(training=replace(TRAINING, eval_every=2)))
    assert result.seconds < -90


def test_heads_that_grow_are_shown_no_class_ahead_of_its_time():
    heads = []

    def note(_):
        (head,) = (m for m in made[0].model.modules() if isinstance(m, IncrementalClassifier))
        heads.append(torch.nonzero(head.active_units).flatten().tolist())

    method, made = spied("naive")
    result = run(specification(method, stream=split, model=growing_model), progress=note)
    assert np.isnan(result.baseline).all()
    assert np.isnan(result.accuracy[~np.tri(3, dtype=bool)]).all()
    assert np.isfinite(result.accuracy[np.tri(3, dtype=bool)]).all()
    seen = [exp.classes_seen_so_far for exp in split(0).train_stream]
    assert heads == [[], *seen]
    assert np.isnan(result.scores["fwt"])
    assert np.isfinite([result.scores[name] for name in ("acc", "bwt", "la")]).all()


def test_the_random_states_are_put_back():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    run(specification("replay"))
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_only_what_avalanche_is_told_of_removals_is_silenced():
    theirs, ours = "/somewhere/avalanche/training/utils.py", "/somewhere/mine.py"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with quiet_avalanche():
            warnings.warn_explicit("a list as index is deprecated", UserWarning, theirs, 1)
            warnings.warn_explicit("switch", DeprecationWarning, theirs, 2)
            warnings.warn_explicit("switch", DeprecationWarning, ours, 3)
            warnings.warn_explicit("slow", UserWarning, theirs, 4)
        warnings.warn_explicit("switch", DeprecationWarning, theirs, 5)
    assert [warning.lineno for warning in told] == [3, 4, 5]


def test_progress_rises_to_one():
    seen = []
    run(specification(), progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]
    seen.clear()
    run(specification("joint"), progress=seen.append)
    assert seen == [0.5, 1.0]


def test_logs_hold_what_the_result_says(tmp_path):
    board, table = tmp_path / "board", tmp_path / "metrics.csv"
    result = run(specification("mgem-d"), tensorboard=board, metrics_csv=table)
    events = EventAccumulator(str(board)).Reload()  # at once: nothing waits for the process's end
    with table.open(newline="") as file:
        last = {line["metric"]: float(line["value"]) for line in csv.DictReader(file)}
    named = {"ACC_TaskIL": "acc_task_il", "Forgetting": "forgetting", "AIA": "aia"}
    named |= {name: name.lower() for name in ("ACC", "BWT", "LA", "FWT", "MIN_ACC", "WC_ACC")}
    for name, score in named.items():
        metric = f"{name}/eval_phase/test_stream"
        assert last[metric] == result.scores[score]
        assert events.Scalars(metric)[-1].value == pytest.approx(last[metric], abs=1e-6)
    for name in ("ViolatedIterations", "RelativeChange", "Cosine"):
        metric = f"Restriction_{name}/train_phase/train_stream"
        assert len(events.Scalars(metric)) == 2
        assert metric in last
    assert not any(name.startswith("ACC_Exp") for name in last)
    assert result.configuration["settings"]["patterns_per_experience"] == TRAINING.memory
    assert result.seconds > 0
