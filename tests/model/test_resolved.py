"""Layers that are kept from step to step are those that a search would find."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from avalanche_mgem.model.gate_layers import GateLayers
from avalanche_mgem.model.layers import resolve_gated_layers


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


CHANGES = {
    "freeze": freeze,
    "freeze bias": freeze_bias,
    "module": replace_module,
    "container": replace_container,
    "parameter": replace_parameter,
    "inside": replace_in_attention,
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
