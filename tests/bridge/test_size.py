"""A size that cannot be is refused before any training."""

import copy

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from tiny import domain_stream, make_model, make_strategy, parameter_vector, train

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.bridge import size
from avalanche_mgem.bridge.size import check_size, device_memory, rows_of_stream


def parameters(dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(10, 5, dtype=dtype))]


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.float64, 8)])
def test_what_fits_exactly_fits(dtype, width):
    needed = (3 + 2) * 50 * width
    check_size(3, parameters(dtype), needed, "here")
    with pytest.raises(ValueError, match=r"3 memory rows \(here\) over 50 trainable parameters"):
        check_size(3, parameters(dtype), needed - 1, "here")


def test_no_limit_is_what_the_device_has(monkeypatch):
    monkeypatch.setattr(size, "device_memory", lambda device: 100)
    with pytest.raises(ValueError, match="GiB"):
        check_size(3, parameters(), None, "here")
    monkeypatch.setattr(size, "device_memory", lambda device: None)
    check_size(3, parameters(), None, "here")


def test_a_control_group_may_allow_less(monkeypatch, tmp_path):
    there = device_memory(torch.device("cpu"))
    assert there is None or there > 2**20
    for text, expected in (("max", there), (str(2**20), there and 2**20)):
        (tmp_path / "memory.max").write_text(text + "\n")
        monkeypatch.setattr(size, "_CGROUP", tmp_path / "memory.max")
        if size.os.path.exists("/sys/fs/cgroup/memory.max") and text == "max":
            continue
        assert device_memory(torch.device("cpu")) == expected


def test_the_rows_at_the_end_of_a_stream():
    stream = domain_stream(n_experiences=3).train_stream
    assert [rows_of_stream(e, 4 * i, 4) for i, e in enumerate(stream)] == [8, 8, 8]
    parts = split_online_stream(stream, experience_size=10)
    assert rows_of_stream(next(iter(parts)), 4, 4) == 4


def test_training_does_not_begin_with_a_stream_that_will_not_fit():
    model = make_model()
    before = parameter_vector(model)
    needed = (2 * 3 + 2) * len(before) * 4  # two past tasks of three groups
    stream = domain_stream(n_experiences=3).train_stream
    fits = MGEMPlugin(12, memory_groups=3, max_row_bytes=needed, seed=0)
    make_strategy(copy.deepcopy(model), [fits]).train(stream[0])
    refused = MGEMPlugin(12, memory_groups=3, max_row_bytes=needed - 1, seed=0)
    with pytest.raises(ValueError, match=r"6 memory rows \(in the stream's last experience\)"):
        make_strategy(model, [refused]).train(stream[0])
    assert torch.equal(parameter_vector(model), before)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"memory_groups": 3, "generalization_every": 5}, 2 * (3 + 1)),
        ({"memory_groups": 12, "memory_split": "class"}, 2 * 6),  # six classes a task
    ],
)
def test_the_rows_that_there_can_be_are_counted(arguments, rows):
    model, stream = make_model(), domain_stream(n_experiences=3).train_stream
    needed = (rows + 2) * len(parameter_vector(model)) * 4
    fits = MGEMPlugin(12, max_row_bytes=needed, seed=0, **arguments)
    train(make_strategy(copy.deepcopy(model), [fits]), stream)
    assert len(fits._matrix.rows) <= rows
    refused = MGEMPlugin(12, max_row_bytes=needed - 1, seed=0, **arguments)
    with pytest.raises(ValueError, match=f"{rows} memory rows"):
        make_strategy(model, [refused]).train(stream[0])
