"""The tensors behind a weight: holding their rows holds the weight's, or it is said why not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from avalanche_mgem.model.behind import CoupledRowsError, tensors_behind


def linear():
    torch.manual_seed(0)
    return nn.Linear(5, 8)


def conv():
    torch.manual_seed(0)
    return nn.Conv2d(3, 8, 3)


class Exp(nn.Module):
    def forward(self, weight):
        return weight.exp()


class Doubled(nn.Module):
    """Adds a low-rank part, as LoRA in a parametrisation does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(8, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


class Dropped(nn.Module):
    def forward(self, weight):
        return weight * (torch.rand_like(weight) < 0.5)


class Mask(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.register_buffer("mask", (torch.rand(shape) < 0.5).float())

    def forward(self, weight):
        return weight * self.mask


def parametrized(module, step):
    parametrize.register_parametrization(module, "weight", step)
    return module


def old_weight_norm(module, dim=0):
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(module, dim=dim)


ROW_BY_ROW = {
    "plain": linear,
    "conv": conv,
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "weight_norm of a convolution": lambda: parametrizations.weight_norm(conv()),
    "old weight_norm": lambda: old_weight_norm(linear()),
    "old weight_norm of a convolution": lambda: old_weight_norm(conv()),
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 0.4),
    "pruned twice": lambda: prune.random_unstructured(
        prune.ln_structured(conv(), "weight", 0.4, n=2, dim=0), "weight", 0.2
    ),
    "exp": lambda: parametrized(linear(), Exp()),
    "mask": lambda: parametrized(linear(), Mask((8, 5))),
    "chain": lambda: parametrized(parametrized(linear(), Exp()), Mask((8, 5))),
}

COUPLED = {
    "spectral_norm": (lambda: parametrizations.spectral_norm(linear()), "_SpectralNorm"),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(linear()), "SpectralNorm"),
    "orthogonal": (lambda: parametrizations.orthogonal(linear()), "_Orthogonal"),
    "weight_norm of columns": (
        lambda: parametrizations.weight_norm(linear(), dim=1),
        "_WeightNorm",
    ),
    "old weight_norm of columns": (lambda: old_weight_norm(linear(), 1), "among the rows"),
    "old weight_norm of all": (lambda: old_weight_norm(linear(), None), "among the rows"),
    "own parameters": (lambda: parametrized(linear(), Doubled()), "parameters of its own"),
    "random": (lambda: parametrized(linear(), Dropped()), "Dropped"),
}


@pytest.mark.parametrize("kind", ROW_BY_ROW)
def test_rows_of_the_weight_stay_where_rows_behind_it_stay(kind):
    module = ROW_BY_ROW[kind]()
    x = torch.randn(4, 5) if isinstance(module, nn.Linear) else torch.randn(4, 3, 6, 6)
    module(x)
    before = module.weight.detach().clone()
    tensors = tensors_behind(module, 0)
    named = dict(module.named_parameters())
    assert tensors
    assert all(named[name] is parameter for name, parameter in tensors.items())
    moved = torch.arange(8) % 3 == 0
    with torch.no_grad():
        for parameter in tensors.values():
            parameter[moved] += 1.0
    module(x)  # hooks make the weight in a forward pass
    changed = (module.weight != before).flatten(1).any(1)
    assert not changed[~moved].any()
    assert changed[moved].any()
    others = {id(p) for p in module.parameters()} - {id(p) for p in tensors.values()}
    assert others == {id(module.bias)}


@pytest.mark.parametrize("kind", COUPLED)
def test_what_couples_rows_is_refused_by_name_and_unchanged(kind):
    make, said = COUPLED[kind]
    module = make()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CoupledRowsError, match=said):
        tensors_behind(module, 0)
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert module.training


@pytest.mark.parametrize("kind", ROW_BY_ROW)
def test_what_is_frozen_is_no_part_of_it(kind):
    module = ROW_BY_ROW[kind]()
    module.requires_grad_(False)
    assert tensors_behind(module, 0) == {}


def test_random_states_are_left_as_they_were():
    module = parametrizations.weight_norm(linear())
    state = torch.get_rng_state()
    tensors_behind(module, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_output_units_of_a_transposed_convolution_lie_along_the_second_dimension():
    module = parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3), dim=1)
    assert len(tensors_behind(module, 1)) == 2
    with pytest.raises(CoupledRowsError):
        tensors_behind(parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3)), 1)


def test_a_weight_of_unknown_making_is_refused():
    module = linear()
    weight = module.weight.detach()
    del module.weight
    module.weight = weight
    with pytest.raises(CoupledRowsError, match="what makes it is not known"):
        tensors_behind(module, 0)
