"""One run: every method trains, the same way every time, whoever is watching."""

import csv
import random

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training.determinism.rng_manager import RNGManager
from cases import MODEL, STREAMS, TRAINING, dropout_model, growing_model, specification, split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import parameter_vector, tiny_data
from torch import nn

from avalanche_mgem.experiment import METHODS, Method
from avalanche_mgem.experiment.run import run
from avalanche_mgem.streams import permuted_stream


def spied(name):
    """The method, and the list of the strategies that it makes."""
    made, method = [], METHODS[name]

    def strategy(**arguments):
        made.append(method.strategy(**arguments))
        return made[-1]

    return Method(name, strategy, method.settings), made


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_twice_the_same_way(name, stream):
    one, two = (run(specification(name, stream=STREAMS[stream], seed=3)) for _ in range(2))
    assert one.accuracy.shape == (3, 3)
    assert np.isfinite(list(one.scores.values())).all()
    assert ((one.accuracy >= 0) & (one.accuracy <= 1)).all()
    np.testing.assert_array_equal(one.accuracy, two.accuracy)
    np.testing.assert_array_equal(one.baseline, two.baseline)
    assert one.restriction == two.restriction
    assert bool(one.restriction) == name.startswith("mgem")
    assert (one.method, one.stream, one.seed) == (name, stream, 3)


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
    strategy = METHODS[name].strategy(
        model=built,
        optimizer=torch.optim.SGD(built.parameters(), lr=TRAINING.learning_rate),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=TRAINING.batch_size,
        train_epochs=TRAINING.epochs,
        evaluator=None,
        **METHODS[name].resolved_settings(TRAINING.memory, len(scenario.train_stream)),
    )
    for experience in scenario.train_stream:
        strategy.train(experience)
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


def test_progress_rises_to_one():
    seen = []
    run(specification(), progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_logs_hold_what_the_result_says(tmp_path):
    board, table = tmp_path / "board", tmp_path / "metrics.csv"
    result = run(specification("mgem-d"), tensorboard=board, metrics_csv=table)
    events = EventAccumulator(str(board)).Reload()  # at once: nothing waits for the process's end
    with table.open(newline="") as file:
        last = {line["metric"]: float(line["value"]) for line in csv.DictReader(file)}
    for name, score in (("ACC", "acc"), ("BWT", "bwt"), ("LA", "la"), ("FWT", "fwt")):
        metric = f"{name}/eval_phase/test_stream"
        assert last[metric] == result.scores[score]
        assert events.Scalars(metric)[-1].value == pytest.approx(last[metric], abs=1e-6)
    for name in ("ViolatedIterations", "RelativeChange", "Cosine"):
        metric = f"Restriction_{name}/train_phase/train_stream"
        assert len(events.Scalars(metric)) == 2
        assert metric in last
    assert result.configuration["settings"]["patterns_per_experience"] == TRAINING.memory
    assert result.seconds > 0
