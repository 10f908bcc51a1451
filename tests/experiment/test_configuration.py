"""What a run is started with, and the key of its files."""

import json
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.training.supervised import Naive
from run_cases import permuted, specification, split

from avalanche_mgem.experiment import METHODS, Method, MLPFactory, NamedStream, Training
from avalanche_mgem.restriction import LinearSchedule, QuadprogSolver
from avalanche_mgem.results.describe import describe


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "0.1"),
        ("batch_size", 0),
        ("epochs", 1.5),
        ("eval_batch_size", -1),
        ("memory", True),
        ("eval_every", 0),
        ("eval_every", 2.5),
        ("precision", "fp32"),
        ("accumulate", 0),
        ("accumulate", 11),  # of a minibatch of 10
        ("clip", 0.0),
        ("schedule", "cosinus"),
        ("augment", "yes"),
    ],
)
def test_bad_training_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Training(**{name: value})


def test_equal_training_is_equal_however_it_is_written():
    plain = Training(learning_rate=1.0, memory=3)
    other = Training(learning_rate=1, memory=np.int64(3), device=torch.device("cpu"))
    assert plain == other
    assert specification(training=plain).key == specification(training=other).key


def test_a_device_may_be_a_number():
    try:
        first = torch.device(0)
    except RuntimeError:
        pytest.skip("in this torch a number is a device only where there is an accelerator")
    given = Training(device=0).device
    assert given == str(first) == Training(device=given).device


def test_the_key_changes_with_whatever_decides_the_result():
    base = specification("mgem-d")
    gem = METHODS["mgem-d"]
    others = [
        specification("mgem-p"),
        specification(gem.variant(memory_groups=2)),
        specification(gem.variant(memory_strength=LinearSchedule(0.0, 1.0, 3))),
        specification(gem.variant(memory_strength=LinearSchedule(0.0, 0.5, 3))),
        specification(gem, seed=1),
        specification(gem, stream=split),
        specification(gem, model=MLPFactory((9,))),
        specification(gem, training=replace(base.training, epochs=2)),
        specification(gem, training=replace(base.training, memory=17)),
        specification(gem, training=replace(base.training, learning_rate=0.2)),
        specification(gem, training=replace(base.training, eval_every=10)),
        specification(gem, training=replace(base.training, precision="bf16")),
        specification(gem, training=replace(base.training, precision="fp16")),
        specification(gem, training=replace(base.training, accumulate=2)),
        specification(gem, training=replace(base.training, clip=1.0)),
        specification(gem, training=replace(base.training, schedule="step")),
        specification(gem, training=replace(base.training, augment=True)),
    ]
    keys = [base.key, *(other.key for other in others)]
    assert len(set(keys)) == len(keys)
    assert specification("mgem-d").key == base.key


def test_the_key_keeps_to_what_decides_the_result():
    def stream(**arguments):
        return NamedStream("permuted-digits", {"n_experiences": 2, **arguments})

    base = specification(stream=stream())
    faster = replace(base.training, eval_batch_size=7)
    assert specification(stream=stream(), training=faster).key == base.key
    told = {"precision", "accumulate", "clip", "schedule", "augment", "eval_every"}
    assert not told & base.description()["training"].keys()
    assert specification(stream=stream(data_root="somewhere", download=False)).key == base.key
    assert specification(stream=stream(train_per_experience=5)).key != base.key


def test_a_file_counts_by_its_contents_and_not_its_place(tmp_path, monkeypatch):
    def key(name, **arguments):
        return specification(stream=NamedStream(name, {"n_experiences": 2, **arguments})).key

    (tmp_path / "mine.npz").write_bytes(b"one")
    first = key("permuted:mine.npz", data_root=tmp_path)
    monkeypatch.chdir(tmp_path)
    assert key("permuted:mine.npz") == first
    (tmp_path / "mine.npz").write_bytes(b"another")
    assert key("permuted:mine.npz") != first


def test_a_folder_counts_by_its_own_name_and_not_its_place(tmp_path):
    def key(name):
        return specification(stream=NamedStream(name, {"n_experiences": 2})).key

    for place in ("one", "two"):
        (tmp_path / place / "birds" / "crow").mkdir(parents=True)
        (tmp_path / place / "birds" / "crow" / "1.png").write_bytes(b"one")
    one, two = (f"split:{tmp_path / place / 'birds'}/" for place in ("one", "two"))
    assert key(one) == key(two)
    assert key(f"{one}+noise:2") == key(f"{two}+noise:2") != key(one)
    (tmp_path / "two" / "birds" / "crow" / "1.png").write_bytes(b"another")
    assert key(one) != key(two)
    moved = (tmp_path / "one" / "birds").rename(tmp_path / "one" / "owls")
    assert key(f"split:{moved}/") != key(f"split:{moved.parent}/")


def test_the_order_of_a_mapping_counts_and_that_of_attributes_does_not():
    hybrid = METHODS["hybrid"]
    modules = {"top": ["3"], "bottom": ["1"]}
    one, twin, other = (
        specification(hybrid.variant(modules=each)).key
        for each in (modules, dict(modules), dict(reversed(modules.items())))
    )
    assert one == twin != other
    assert describe({"a": 1, "b": {"c": 2}}) == {"a": 1, "b": {"c": 2}}  # as it always was
    assert describe(SimpleNamespace(b=1, a=2)) == describe(SimpleNamespace(a=2, b=1))
    assert describe(partial(permuted, b=1, a=2)) == describe(partial(permuted, a=2, b=1))


@pytest.mark.parametrize("name", ["a/b", "..", "gem é=0.5", "x" * 300, "a\nb", "C:\\x"])
def test_any_name_of_a_method_makes_a_file_name(name, tmp_path):
    key = specification(Method(name, Naive)).key
    assert (tmp_path / f"{key}.json").parent == tmp_path
    (tmp_path / f"{key}.json").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.json"]
    assert key != specification(Method(name + "/", Naive)).key


def make_function(value):
    def function(seed, factor=value):
        return factor * value + seed

    return function


def make_recursive():
    def function(n):
        return function(n - 1) if n else 0

    return function


class Callable:
    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value

    def method(self):
        return self.value


@dataclass
class Stream:
    samples: torch.Tensor


CASES = {
    "closure": make_function,
    "partial": lambda value: partial(permuted, factor=value),
    "lambda": lambda value: lambda: value,
    "object": Callable,
    "bound method": lambda value: Callable(value).method,
    "mapping": lambda value: {"a": {"b": value}},
    "set": lambda value: {"a", "b", value},
    "namespace": lambda value: SimpleNamespace(value=value),
    "array": lambda value: np.r_[np.zeros(5000), value, np.zeros(5000)],
    "tensor": lambda value: torch.eye(200).index_fill(0, torch.tensor([100]), value),
    "bfloat16": lambda value: torch.tensor(value, dtype=torch.bfloat16),
    "dataclass": lambda value: Stream(torch.full((5, 3), value)),
    "long state": lambda value: Callable([*range(5000), value]),
    "infinity": lambda value: value * float("inf") if value < 2 else float("-inf"),
}


@pytest.mark.parametrize("kind", CASES)
def test_twins_are_described_alike_and_others_are_not(kind):
    one, twin, other = (json.dumps(describe(CASES[kind](v)), allow_nan=False) for v in (1, 1, 2))
    assert one == twin
    assert one != other
    assert " at 0x" not in one
    assert len(one) < 700


def test_descriptions_end():
    assert json.dumps(describe(make_recursive())) == json.dumps(describe(make_recursive()))
    knot = Callable(None)
    knot.value = [knot]
    assert json.dumps(describe(knot))
    assert json.dumps(describe(QuadprogSolver())) == json.dumps(describe(QuadprogSolver()))


def test_memories_are_numbers_once_the_stream_is_known():
    description = specification("replay").description(n_experiences=3)
    assert description["settings"] == {"mem_size": 48}
    assert description["training"]["memory"] == 16
    json.dumps(description, allow_nan=False)


def test_what_is_met_often_is_described_once():
    tangle = Callable(0)
    for _ in range(60):  # a walk that followed every path would never end
        tangle = Callable([tangle, tangle])
    assert json.dumps(describe(tangle))
    one, other = Callable(1), Callable(1)
    assert describe([one, other, one]) != describe([one, other, other])


def test_modules_are_named():
    assert describe({"module": np}) == {"module": "numpy"}
