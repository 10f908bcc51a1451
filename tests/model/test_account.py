"""What of a model is gated, what is not, and the warning where much is not."""

import warnings

import pytest
import torch
from torch import nn

from avalanche_mgem.model.account import account
from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.layers import find_gated_layers, find_heads


class Custom(nn.Module):
    """A layer of a kind that nobody knows."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(n_in, n_out))

    def forward(self, x):
        return x @ self.matrix


def counted(model):
    layers = find_gated_layers(model)
    return account(model, layers, find_heads(model), "names")


def test_every_trainable_parameter_is_counted_once():
    model = nn.Sequential(
        *(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 6), Custom(6, 5), nn.Linear(5, 3))
    )
    model[1].weight.requires_grad_(False)
    found = counted(model)
    assert found.trainable == 40 + 4 + 24 + 6 + 30 + 15 + 3
    assert found.gated == 24
    assert found.heads == ("4",)
    assert found.left_out == {"Custom": (30, ("3.matrix",))}
    assert found.share == 24 / found.trainable
    assert found.share_left_out == 30 / found.trainable


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(layer, layer, nn.Linear(4, 2, bias=False))
    assert counted(model).trainable == 16 + 8


@pytest.mark.parametrize("width", [40, 4])
def test_much_that_is_not_gated_is_warned_of_once_with_names(width):
    model = nn.Sequential(nn.Linear(4, 40), Custom(40, width), nn.Linear(width, 2))
    gate = RowGate(seed=0)
    much = width == 40

    def step():
        gate.find(model)
        gate.open(model)
        gate.close(model, model(torch.randn(3, 4)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
        step()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1, messages
    assert "1.matrix" in messages[0]
    assert "train freely" in messages[0]
    assert (gate.last_account.share_left_out > 0.8) == much


def test_what_the_user_has_named_needs_no_warning():
    model = nn.Sequential(nn.Linear(4, 4), Custom(4, 40), nn.Linear(40, 2))
    gate = RowGate(target_modules=["0"])
    gate.find(model)
    gate.open(model)
    gate.close(model, model(torch.randn(3, 4)))
    assert gate.last_account.gated == 16
    assert "Custom" in str(gate.last_account)


def test_a_wrong_guess_is_mended_in_the_first_step():
    """The head is registered first: order takes the body's last layer for it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.a, self.b = nn.Linear(8, 3), nn.Linear(4, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.out(self.b(self.a(x).tanh()).tanh())

    model, gate = Model(), RowGate(0.5)
    gate.find(model)
    assert gate.names == ["out", "a"]
    assert gate.last_account.heads_from == "names"
    gate.open(model)
    output = model(torch.randn(5, 4))
    gate.close(model, output)
    output.sum().backward()
    gate.mask(model)
    assert gate.names == ["a", "b"] == list(gate.last_mask)
    assert gate.last_account.heads == ("out",)
    assert gate.last_account.heads_from == "graph"
    assert (model.b.weight.grad == 0).all(1).sum() == 4  # of 8
    assert not (model.out.weight.grad == 0).all(1).any()
    gate.reset()
    gate.find(model)  # of the next experience: it remembers
    assert gate.names == ["a", "b"]
