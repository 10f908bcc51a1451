"""Layers that are kept from step to step are those that a search would find."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from avalanche_mgem.model.gate import RowGate
from avalanche_mgem.model.gate_layers import GateLayers
from avalanche_mgem.model.layers import resolve_gated_layers
from avalanche_mgem.model.resolved import ResolvedLayers


def network():
    inner = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    return nn.ModuleDict({"a": nn.Linear(4, 6), "b": inner, "head": nn.Linear(4, 2)})


def freeze(model):
    model["a"].weight.requires_grad_(False)


def freeze_bias(model):
    model["b"][0].bias.requires_grad_(False)


def replace_module(model):
    model["a"] = nn.Linear(4, 9)


def replace_container(model):
    model["b"] = copy.deepcopy(model["b"])


def replace_parameter(model):
    model["a"].weight = nn.Parameter(torch.zeros(7, 4))


def replace_in_attention(model):
    model["b"][1].out_proj = nn.Linear(4, 4)


def shrink(model):
    model["a"].weight.data = torch.zeros(3, 4)


CHANGES = {
    "freeze": freeze,
    "freeze bias": freeze_bias,
    "module": replace_module,
    "container": replace_container,
    "parameter": replace_parameter,
    "inside": replace_in_attention,
    "shape": shrink,
    "parametrised": lambda model: parametrizations.weight_norm(model["a"]),
    "pruned": lambda model: prune.random_unstructured(model["a"], "weight", 0.5),
}


def parts(layers):
    return [
        (each.name, id(each.module), [(r.name, id(r.parameter)) for r in each.rows], each.biases)
        for each in layers
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_steps_is_seen(change):
    model = network()
    layers = GateLayers(None, ["head"], "layer")
    layers.find(model)
    known = layers.of(model)
    layers.end_step()
    assert layers.of(model) is known
    layers.end_step()
    CHANGES[change](model)
    found = layers.of(model)
    assert found is not known
    assert parts(found) == parts(resolve_gated_layers(model, layers.names))
    layers.end_step()
    assert layers.of(model) is found


def test_a_child_of_another_name_is_seen():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    known = ResolvedLayers(model, ["a"], resolve_gated_layers(model, ["a"]))
    assert known.are_of(model)
    model._modules["b"] = model._modules.pop("a")
    assert not known.are_of(model)


@pytest.mark.parametrize("ungated", ["train", "freeze"])
@pytest.mark.parametrize("frozen", [["0"], ["0", "2"]], ids=["one", "all"])
def test_what_is_unfrozen_again_is_masked_again(frozen, ungated):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 10), nn.Linear(10, 3))
    gate, x = RowGate(0.7, ungated=ungated), torch.randn(4, 8)
    gate.find(model)
    for trains in (False, True, True):
        for name in frozen:
            model.get_submodule(name).requires_grad_(trains)
        with gated_pass(gate, model, x):
            for name in "02":
                weight = model.get_submodule(name).weight
                expected = 3 if weight.requires_grad else 0
                assert count_of_rows(weight.grad) == expected


def count_of_rows(gradient):
    return 0 if gradient is None else int(gradient.any(1).sum())


@contextlib.contextmanager
def gated_pass(gate, model, x):
    gate.open(model)
    output = model(x)
    gate.close(model, output)
    output.sum().backward()
    gate.mask(model)
    yield
    gate.unhide()
    model.zero_grad()
    gate.reset()


def test_of_other_modules_nothing_is_compared():
    inner = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "inner": inner})
    known = ResolvedLayers(model, ["a"], resolve_gated_layers(model, ["a"]))
    assert known._modules == [model, model["a"]]


def test_other_adapters_are_seen():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["a"])
    model = peft.get_peft_model(network(), config)
    model.add_adapter("other", config)
    layers = GateLayers(None, ["*head"], "layer")
    layers.find(model)
    names = {rows.name for each in layers.of(model) for rows in each.rows}
    assert any("lora_B.default" in name for name in names)
    layers.end_step()
    model.base_model.set_adapter("other")
    names = {rows.name for each in layers.of(model) for rows in each.rows}
    assert any("lora_B.other" in name for name in names)
    assert not any("lora_B.default" in name for name in names)


def test_a_copy_and_an_experience_that_has_ended_keep_no_layer():
    model = network()
    layers = GateLayers(None, ["head"], "layer")
    layers.find(model)
    known = layers.of(model)
    assert copy.deepcopy(layers).of(model) is not known
    layers.forget()
    assert layers.of(model) is not known
