"""Steps in pieces are the plain step, to the bit."""

import copy
import inspect

import pytest
import torch
from torch import nn, optim

from avalanche_mgem.model import element_wise
from avalanche_mgem.model.element_wise import long_parameters, step_alone

KINDS = sorted(element_wise._ELEMENT_WISE, key=lambda kind: kind.__name__)
OPTIONS = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"momentum": 0.9}, {"amsgrad": True}]


def cases():
    """Every optimiser with each option that it takes, by itself and all together."""
    for kind in KINDS:
        known = inspect.signature(kind).parameters
        taken = [option for option in OPTIONS if option.keys() <= known.keys()]
        together = {key: value for option in taken for key, value in option.items()}
        for options in (*taken, together):
            yield pytest.param(kind, options, id=f"{kind.__name__} {options}")


def made(kind, options, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    shapes = ((7, 9), (3,), (5, 2, 3))
    parameters = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    return kind(parameters, lr=0.05, **options)


def draw_gradients(optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in optimizer.param_groups[0]["params"]:
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = drawn.to(parameter.dtype)


def everything(optimizer):
    """Parameters and state, in order."""
    for parameter in optimizer.param_groups[0]["params"]:
        yield "value", parameter.detach().clone()
        for key, value in sorted(optimizer.state[parameter].items()):
            yield key, copy.deepcopy(value)


def assert_same(one, other):
    for (key, a), (other_key, b) in zip(everything(one), everything(other), strict=True):
        assert key == other_key
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, key


@pytest.mark.parametrize(("kind", "options"), [*cases()])
def test_a_parameter_in_pieces_steps_as_the_plain_one(kind, options, monkeypatch):
    monkeypatch.setattr(element_wise, "CACHED", 8)
    monkeypatch.setattr(element_wise, "LONG", 50)
    optimizer, plain = made(kind, options), made(kind, options)
    counted = []
    step = element_wise._step_in_pieces
    monkeypatch.setattr(
        element_wise, "_step_in_pieces", lambda *given: (counted.append(given), step(*given))
    )
    for seed in range(4):
        draw_gradients(optimizer, seed), draw_gradients(plain, seed)
        for parameter in optimizer.param_groups[0]["params"]:
            step_alone(optimizer, parameter)
        plain.step()
        assert_same(optimizer, plain)
    has_state = any(v.ndim > 0 for _, v in everything(plain) if _ != "value")
    # Two long ones, not in a first step that makes their state.
    assert len(counted) in ((6, 8) if has_state else (0,))


def test_what_is_not_long_steps_as_ever(monkeypatch):
    monkeypatch.setattr(element_wise, "CACHED", 8)
    monkeypatch.setattr(element_wise, "LONG", 50)
    optimizer = made(optim.AdamW, {})
    assert [*long_parameters(optimizer, ())] == []  # no state yet
    draw_gradients(optimizer, 0)
    optimizer.step()
    first, _, last = optimizer.param_groups[0]["params"]
    assert [*map(id, long_parameters(optimizer, ()))] == [id(first), id(last)]
    assert [*map(id, long_parameters(optimizer, {id(first)}))] == [id(last)]
    last.grad = None
    assert [*map(id, long_parameters(optimizer, ()))] == [id(first)]
    optimizer.param_groups[0]["fused"] = True
    assert [*long_parameters(optimizer, ())] == []
    optimizer.param_groups[0]["fused"] = False
    first.data = first.data.T.contiguous().T
    assert [*long_parameters(optimizer, ())] == []
    plain = made(optim.SGD, {})
    draw_gradients(plain, 0)
    plain.step()
    assert [*long_parameters(plain, ())] == []  # read once anyway
