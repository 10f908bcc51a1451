"""Benchmarks at hand in comparisons: every kind of head, and keys that see every change."""

import pickle
from io import StringIO

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from data_sets import Counting, TaskSet, by_classes
from rich.console import Console
from run_cases import MODEL, TRAINING, specification
from torch.utils.data import TensorDataset

from avalanche_mgem.experiment import FixedStream, MLPFactory, compare
from avalanche_mgem.experiment.fixed_stream import as_stream
from avalanche_mgem.streams import scenario_from_datasets

pytestmark = pytest.mark.usefixtures("without_figures")


def scenario(kind=Counting, task_labels=True, **changes):
    pairs = by_classes(kind, **changes)
    return scenario_from_datasets(*zip(*pairs, strict=True), task_labels=task_labels)


def plain_benchmark():
    train, test = zip(*by_classes(TensorDataset), strict=True)
    return benchmark_from_datasets(
        train=[AvalancheDataset([each]) for each in train],
        test=[AvalancheDataset([each]) for each in test],
    )


def run(stream, out, methods="naive", **arguments):
    arguments = {"model": MODEL, "training": TRAINING, "seeds": 1, **arguments}
    return compare(methods, stream=stream, out=out, console=Console(file=StringIO()), **arguments)


@pytest.mark.cover
@pytest.mark.parametrize("heads", ["single", "growing", "multi"])
@pytest.mark.parametrize("make", [scenario, plain_benchmark])
def test_a_benchmark_is_compared_on_as_a_function_that_makes_it(tmp_path, make, heads):
    model = MLPFactory((8,), heads=heads)
    methods = ["naive", "replay", "mgem-p"]
    one = run(make(), tmp_path / "one", methods, model=model)
    other = run(lambda seed: make(), tmp_path / "other", methods, model=model)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.accuracy, b.accuracy)
    assert one[0].stream == "benchmark"


def test_task_sets_of_continuum_with_a_head_each(tmp_path):
    (result,) = run(scenario(TaskSet), tmp_path, model=MLPFactory((8,), heads="multi"))
    assert result.accuracy.shape == (3, 3)
    assert np.isnan(result.scores["fwt"])


def test_it_is_the_same_for_all_seeds_and_continues(tmp_path, monkeypatch):
    stream = scenario()
    first = run(stream, tmp_path, seeds=2)
    assert FixedStream(stream)(0) is FixedStream(stream)(1)
    monkeypatch.setattr("avalanche.training.supervised.Naive.train", _no_training)
    again = run(scenario(), tmp_path, seeds=2)
    assert [r.to_json() for r in again] == [r.to_json() for r in first]


@pytest.mark.slow
def test_workers_are_sent_it(tmp_path):
    stream = FixedStream(plain_benchmark(), "plain")
    one = run(stream, tmp_path / "one", seeds=2)
    two = run(stream, tmp_path / "two", seeds=2, jobs=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.accuracy, b.accuracy)
        assert a.configuration == b.configuration
    assert [r.stream for r in two] == ["plain", "plain"]


def _no_training(*_):
    raise AssertionError("trained")


def key(stream):
    return specification(stream=as_stream(stream)).key


def _changed(where):
    pairs = by_classes()
    train, test = pairs[1]
    if where == "value":
        test.x[7, 3] += 1e-6
    elif where == "label":
        train.y[5] = 5 - train.y[5]
    elif where == "order":
        train.x = train.x.flip(0)
    elif where == "length":
        train.x, train.y = train.x[:-1], train.y[:-1]
    return scenario_from_datasets(*zip(*pairs, strict=True), task_labels=where != "task")


@pytest.mark.parametrize("where", ["value", "label", "order", "length", "task"])
def test_any_change_of_the_data_changes_the_key(where):
    assert key(_changed(None)) == key(scenario())
    assert key(_changed(where)) != key(scenario())


def test_transforms_count_and_their_draws_do_not(tmp_path):
    def benchmark(train, evaluate=None):
        groups = TransformGroups({"train": (train, None), "eval": (evaluate, None)})
        pairs = [
            [AvalancheDataset([each], transform_groups=groups) for each in pair]
            for pair in by_classes(TensorDataset)
        ]
        made = list(zip(*pairs, strict=True))
        return benchmark_from_datasets(train=made[0], test=made[1])

    def noise(x):
        return x + torch.randn_like(x)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = key(benchmark(noise))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert key(benchmark(noise)) == first
    others = {key(benchmark(torch.neg)), key(benchmark(noise, torch.neg)), key(benchmark(None))}
    assert len(others | {first}) == 4


def test_a_version_stands_for_the_samples():
    stream = scenario()
    reads = [each.dataset._datasets[0].dataset.read for each in stream.train_stream]
    for read in reads:
        read.clear()
    one, other = (FixedStream(stream, "mine", version=version) for version in ("1", "2"))
    assert key(one) != key(other)
    assert reads == [[]] * 3
    assert one.description() == {"type": "FixedStream", "name": "mine", "version": "1"}
    assert key(FixedStream(scenario(TaskSet), "mine", version="1")) == key(one)


def test_samples_are_read_once_for_all_runs():
    stream = FixedStream(scenario())
    reads = stream(0).train_stream[0].dataset._datasets[0].dataset.read
    reads.clear()
    keys = {
        specification(method, stream=stream, seed=s).key
        for method in ("naive", "gem")
        for s in (0, 1)
    }
    keys.add(specification("agem", stream=pickle.loads(pickle.dumps(stream))).key)
    assert len(keys) == 5
    assert len(reads) == len(set(reads)) + 3


@pytest.mark.parametrize("stream", [3, None, [1, 2], "permuted-digits"])
def test_what_is_no_stream_is_refused(tmp_path, stream):
    with pytest.raises(ValueError, match="stream must be a function of a seed or an Avalanche"):
        run(stream, tmp_path)


def test_a_benchmark_of_the_old_kind_is_taken_as_it_is(tmp_path):
    data = [each[0] for each in by_classes(TensorDataset, n_experiences=1)]
    old = nc_benchmark(*data * 2, n_experiences=2, task_labels=False, seed=0)
    assert FixedStream(old)(0) is old
