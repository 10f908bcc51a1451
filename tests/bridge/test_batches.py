"""The loss on any batch, and what it leaves alone."""

import pytest
import torch
from tiny import SETTINGS, make_model, make_strategy
from torch import nn

from avalanche_mgem.bridge.batches import (
    batch_loss,
    restored_running_statistics,
    write_batch_gradient,
)
from avalanche_mgem.bridge.fields import OneByOne


def prepared(setting="single head"):
    """A strategy in the middle of an experience, and a batch of that experience."""
    strategy = make_strategy(make_model(setting))
    experience = SETTINGS[setting][1]().train_stream[0]
    strategy.train(experience)
    strategy.experience, strategy.is_training = experience, True
    samples = [experience.dataset[i] for i in range(5)]
    return strategy, experience.dataset.collate_fn(samples)


@pytest.mark.parametrize("setting", SETTINGS)
def test_minibatch_output_and_gradients_are_put_back(setting):
    strategy, batch = prepared(setting)
    strategy.mbatch, strategy.mb_output = own = ["own batch"], "own output"
    marks = [torch.full_like(p, 2.0) for p in strategy.model.parameters()]
    for parameter, mark in zip(strategy.model.parameters(), marks, strict=True):
        parameter.grad = mark
    trainable = [p for p in strategy.model.parameters() if p.requires_grad]
    row = torch.full((sum(p.numel() for p in trainable),), 9.0)
    write_batch_gradient(strategy, batch, trainable, row)
    assert (strategy.mbatch, strategy.mb_output) == own
    assert row.any()
    assert not (row == 9.0).any()
    for parameter, mark in zip(strategy.model.parameters(), marks, strict=True):
        assert parameter.grad is mark
        assert (mark == 2.0).all()


def test_they_are_put_back_after_an_error_too():
    strategy, batch = prepared()
    strategy.mbatch, strategy.mb_output = own = ["own batch"], "own output"
    batch[0] = batch[0][:, :2]
    with pytest.raises(RuntimeError):
        batch_loss(strategy, batch)
    assert (strategy.mbatch, strategy.mb_output) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_backward(dtype):
    strategy, batch = prepared()
    parameters = list(strategy.model.parameters())
    row = torch.full((sum(p.numel() for p in parameters),), 9.0, dtype=dtype)
    write_batch_gradient(strategy, batch, parameters, row)
    strategy.model.zero_grad()
    nn.functional.cross_entropy(strategy.model(batch[0]), batch[1]).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(row, expected.to(dtype))


def test_the_memory_keeps_its_own_container():
    """Avalanche writes the moved tensors into the list that it unpacks."""
    strategy, batch = prepared()
    before = list(batch)
    strategy.device = torch.device("cpu")
    batch_loss(strategy, batch)
    assert all(a is b for a, b in zip(batch, before, strict=True))


def test_running_statistics_are_restored():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with restored_running_statistics(model):
        model(torch.randn(4, 3, 5))
        assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_go_one_by_one_are_their_mean(monkeypatch, dtype, wrapped):
    """Also beside DistributedDataParallel, which must not hear of a backward pass."""
    monkeypatch.setattr("avalanche_mgem.bridge.batches.is_wrapped", lambda model: wrapped)
    strategy, batch = prepared()
    parameters = list(strategy.model.parameters())
    rows = torch.full((2, sum(p.numel() for p in parameters)), 9.0, dtype=dtype)
    write_batch_gradient(strategy, batch, parameters, rows[0])
    ones = OneByOne([field[i : i + 1] for field in batch] for i in range(5))
    write_batch_gradient(strategy, ones, parameters, rows[1])
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-6)
