"""The quick walks find what torch's find."""

import pytest
import torch
from torch import nn

from avalanche_mgem.model.walking import modules_of, named_parameters


class Own(nn.Module):
    """Walks its modules in another order."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 3)

    def named_modules(self, memo=None, prefix="", remove_duplicate=True):
        yield prefix, self
        yield f"{prefix}.second".strip("."), self.second


class Renamed(nn.Sequential):
    def named_parameters(self, *arguments, **named):
        return iter([("only", self[0].weight)])


def shared():
    layer, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = layer.weight
    return nn.Sequential(layer, nn.Sequential(layer, other), nn.ReLU())


def with_nothing():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Identity()})
    model.none = None
    model.register_module("missing", None)
    return model


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))


MODELS = {
    "layers": lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential()),
    "shared": shared,
    "missing parts": with_nothing,
    "parametrized": parametrized,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "scripted": lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.Linear(2, 1)),
    "own walk": lambda: nn.Sequential(nn.Linear(1, 2), Own()),
    "own parameters": lambda: Renamed(nn.Linear(2, 2), nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", MODELS)
def test_quick_walks_are_torchs(name):
    model = MODELS[name]()
    found, expected = named_parameters(model), list(model.named_parameters())
    assert [n for n, _ in found] == [n for n, _ in expected]
    assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))
    assert list(map(id, modules_of(model))) == list(map(id, model.modules()))
