"""Layers that train and whose forward is never called: seen by their products, or named."""

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.layers import find_gated_layers


class Around(nn.Module):
    """Uses the weights of `a` and `b` by functions, those of `b` through `made`."""

    def __init__(self, made=lambda weight: weight):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.out, self.made = nn.Linear(8, 3), made

    def forward(self, x):
        x = functional.linear(x, self.a.weight, self.a.bias).relu()
        x = functional.linear(x, self.made(self.b.weight)).relu()
        return self.out(self.c(x).tanh())


def step(gate, model, x):
    gate.open(model)
    output = model(x)
    gate.close(model, output)
    model.zero_grad()
    output.square().sum().backward()
    gate.mask(model)
    gate.reset()
    return gate.last_mask


def test_a_weight_that_a_function_is_handed_is_gated_from_the_second_step_on():
    torch.manual_seed(0)
    model, x, gate = Around(), torch.randn(5, 6), RowGate(0.5)
    gate.find(model)
    assert set(step(gate, model, x)) == {"c"}
    mask = step(gate, model, x)
    assert set(mask) == {"a", "b", "c"}
    with torch.no_grad():
        outputs = functional.linear(x, model.a.weight, model.a.bias)
    torch.testing.assert_close(gate.last_scores["a"], outputs.abs().mean(0))
    assert (model.a.weight.grad[~mask["a"]] == 0).all()
    gate.find(model)  # of the next experience: it remembers
    assert set(step(gate, model, x)) == {"a", "b", "c"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_not_seen_either_is_warned_of_once_or_refused_where_it_was_named():
    torch.manual_seed(0)
    model, x = Around(made=lambda weight: weight.abs().sum() * torch.eye(8)), torch.randn(5, 6)
    gate = RowGate(0.5)
    gate.find(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        masks = [step(gate, model, x) for _ in range(4)]
    assert set(masks[-1]) == {"a", "c"}
    (message,) = [str(warning.message) for warning in caught]
    assert "never called: b; they train freely" in message
    gate = RowGate(0.5, target_modules=["b", "c"])
    gate.find(model)
    step(gate, model, x)
    with pytest.raises(RuntimeError, match=r"never called: b; leave them out of target_modules"):
        step(gate, model, x)


def test_a_layer_that_a_step_does_not_use_is_no_fault():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.uses = True

        def forward(self, x):
            x = self.a(x).tanh()
            return self.out(self.b(x) if self.uses else x)

    model, x, gate = Sometimes(), torch.randn(5, 6), RowGate(0.5, target_modules=["a", "b"])
    gate.find(model)
    for uses in (True, False, False, True):
        model.uses = uses
        assert set(step(gate, model, x)) == ({"a", "b"} if uses else {"a"})


@pytest.mark.parametrize("make", [torchvision.models.swin_t, torchvision.models.swin_v2_t])
def test_swin_is_gated_whole(make):
    """Its attention hands the weights of qkv and proj to a function."""
    block = make(weights=None, num_classes=3).features[1][0]
    assert type(block.attn).__name__.startswith("ShiftedWindowAttention")
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(96 * 16, 3))
    x, gate = torch.randn(2, 4, 4, 96), RowGate(0.5)
    gate.find(model)
    step(gate, model, x)
    names = {"0.attn.qkv", "0.attn.proj", "0.mlp.0", "0.mlp.3"}
    assert names <= set(step(gate, model, x))


def named(*layers):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    for at, change in layers:
        change(model[at])
    return model


def test_rows_behind_a_normalised_or_pruned_weight_are_gated():
    model = named(
        (0, parametrizations.weight_norm), (2, lambda m: prune.l1_unstructured(m, "weight", 0.3))
    )
    layers = {layer.name: layer for layer in find_gated_layers(model)}
    assert [rows.name for rows in layers["0"].rows] == [
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    ]
    assert [rows.name for rows in layers["2"].rows] == ["2.weight_orig"]
    gate, x = RowGate(0.5, freeze="update"), torch.randn(5, 6)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    gate.find(model)
    for _ in range(2):
        gate.open(model)
        output = model(x)
        gate.close(model, output)
        optimizer.zero_grad()
        output.square().sum().backward()
        gate.mask(model)
        before = [model[at].weight.detach().clone() for at in (0, 2)]
        gate.hold(model, optimizer)
        optimizer.step()
        gate.release()
        gate.reset()
    model(x)  # pruning makes its weight in a forward pass
    for at, old in zip((0, 2), before, strict=True):
        moved = (model[at].weight != old).any(1)
        assert torch.equal(moved, gate.last_mask[str(at)]), at


@pytest.mark.parametrize("change", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_a_named_layer_whose_rows_are_coupled_is_refused_with_the_reason(change):
    model = named((2, change))
    with pytest.raises(ValueError, match=r"target_modules: '2' cannot be gated: _\w+ makes each"):
        find_gated_layers(model, ["0", "2"])
    assert [layer.name for layer in find_gated_layers(model)] == ["0"]


def test_a_named_layer_that_is_frozen_is_told():
    model = named((2, lambda module: module.requires_grad_(False)))
    with pytest.warns(UserWarning, match="1 of the layers that are meant have no trainable rows"):
        assert [layer.name for layer in find_gated_layers(model, ["0", "2"])] == ["0"]
    assert [layer.name for layer in find_gated_layers(model)] == ["0"]


def test_all_are_frozen_is_said_only_when_they_are():
    model = named((0, parametrizations.orthogonal), (2, parametrizations.spectral_norm))
    with pytest.raises(ValueError, match="no parameters with rows of their own"):
        find_gated_layers(model)
    model = named((0, lambda m: m.requires_grad_(False)), (2, lambda m: m.requires_grad_(False)))
    with pytest.raises(ValueError, match="frozen"):
        find_gated_layers(model)
