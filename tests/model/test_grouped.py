"""One pass for many groups against a pass for each."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_mgem.model.grouped import (
    NotGroupedError,
    recorded_linears,
    why_not_grouped,
    write_grouped_gradients,
)

SHARED = nn.Linear(4, 4)


def total(parameters):
    return sum(p.numel() for p in parameters)


def one_by_one(model, x, y, groups, parameters):
    rows = []
    for own_x, own_y in zip(x.chunk(groups), y.chunk(groups), strict=True):
        loss = nn.functional.cross_entropy(model(own_x).flatten(0, -2), own_y.flatten())
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        both = zip(parameters, slopes, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if s is None else s).flatten() for p, s in both])
        )
    return torch.stack(rows)


def together(model, x, y, groups, parameters):
    rows = torch.full((groups + 1, total(parameters)), 7.0)[1:]
    with recorded_linears(model) as calls:
        output = model(x)
    loss = nn.functional.cross_entropy(output.flatten(0, -2), y.flatten()) * groups
    write_grouped_gradients(calls, loss, len(x), parameters, rows)
    return rows


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    groups=st.integers(1, 5),
    size=st.integers(1, 4),
    tokens=st.sampled_from([None, 3]),
    bias=st.booleans(),
    frozen=st.sets(st.integers(0, 7)),
    activation=st.sampled_from([nn.ReLU(), nn.Tanh(), nn.GELU(), nn.Identity()]),
)
@settings(max_examples=200)
def test_the_rows_are_those_of_a_pass_each(widths, groups, size, tokens, bias, frozen, activation):
    torch.manual_seed(0)
    layers = []
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out, bias=bias), activation]
    model = nn.Sequential(*layers[:-1])
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index not in frozen)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    shape = (groups * size,) if tokens is None else (groups * size, tokens)
    x, y = torch.randn(*shape, widths[0]), torch.randint(widths[-1], shape)
    assert why_not_grouped(model, parameters) is None
    expected = one_by_one(model, x, y, groups, parameters)
    error = (together(model, x, y, groups, parameters) - expected).norm(dim=1)
    assert (error <= 1e-6 * expected.norm(dim=1) + 1e-9).all()


def test_a_layer_that_is_not_used_gets_zeros():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "other": nn.Linear(3, 2)})
    parameters, rows = list(model.parameters()), torch.full((2, 16), 7.0)
    with recorded_linears(model) as calls:
        output = model["used"](torch.randn(4, 3))
    write_grouped_gradients(calls, output.square().sum(), 4, parameters, rows)
    assert rows[:, :8].abs().min() > 0
    assert not rows[:, 8:].any()


def test_what_is_done_in_place_behind_a_layer_changes_nothing():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3), nn.Tanh())
    inplace = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2], nn.Tanh())
    x, y, parameters = torch.randn(6, 3), torch.randint(3, (6,)), list(plain.parameters())
    expected = one_by_one(plain, x, y, 3, parameters)
    torch.testing.assert_close(together(inplace, x, y, 3, parameters), expected)


def test_a_layer_whose_samples_are_a_part_is_refused_though_they_divide():
    """A head of one of two tasks sees half of the samples, which could be dealt to all groups."""
    layer, rows = nn.Linear(3, 2), torch.zeros(2, 8)
    with recorded_linears(layer) as calls:
        loss = layer(torch.randn(8, 3)[:4]).sum()
    with pytest.raises(NotGroupedError, match="other samples"):
        write_grouped_gradients(calls, loss, 8, list(layer.parameters()), rows)


def test_an_input_by_name_and_a_layer_without_gradient():
    first, second = nn.Linear(3, 3), nn.Linear(3, 2)
    rows, parameters = torch.full((2, 8), 7.0), list(second.parameters())
    with recorded_linears(nn.Sequential(first, second)) as calls:
        with torch.no_grad():
            between = first(torch.randn(4, 3))
        loss = second(input=between).sum()
    write_grouped_gradients(calls, loss, 4, parameters, rows)
    torch.testing.assert_close(rows[0, 6:], torch.full((2,), 2.0))
    with pytest.raises(NotGroupedError, match="no linear layer was seen at work"):
        write_grouped_gradients([], loss, 4, parameters, rows)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "BatchNorm1d is neither"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "Conv2d is neither"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "LayerNorm is neither"),
        (nn.Sequential(nn.Embedding(3, 3)), "Embedding is neither"),
        (nn.Sequential(SHARED, nn.Sequential(nn.Linear(4, 4), nn.ReLU())), None),
        (nn.LSTM(2, 2), "LSTM is neither"),
    ],
    ids=str,
)
def test_what_speaks_against_it(model, reason):
    said = why_not_grouped(model, list(model.parameters()))
    assert said is None if reason is None else reason in said


def test_tied_and_loose_parameters_speak_against_it():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert "share" in why_not_grouped(tied, list(tied.parameters()))
    loose = nn.Sequential(nn.Linear(4, 4))
    loose.scale = nn.Parameter(torch.ones(1))
    assert "belongs to no linear" in why_not_grouped(loose, list(loose.parameters()))


def test_a_subclass_of_a_known_layer_is_not_known():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    model = nn.Sequential(Centred(2, 2))
    assert "Centred is neither" in why_not_grouped(model, list(model.parameters()))


def test_a_layer_used_twice_is_refused():
    x, rows = torch.randn(4, 4), torch.zeros(2, 20)
    with recorded_linears(SHARED) as calls:
        loss = SHARED(SHARED(x)).sum()
    with pytest.raises(NotGroupedError, match="used twice"):
        write_grouped_gradients(calls, loss, 4, list(SHARED.parameters()), rows)


def test_a_layer_that_sees_other_samples_is_refused():
    layer, rows = nn.Linear(3, 2), torch.zeros(2, 8)
    with recorded_linears(layer) as calls:
        loss = layer(torch.randn(4, 3)[:3]).sum()
    with pytest.raises(NotGroupedError, match="other samples"):
        write_grouped_gradients(calls, loss, 4, list(layer.parameters()), rows)


def test_no_hook_is_left_after_an_error():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.raises(RuntimeError), recorded_linears(model):
        model(torch.randn(4, 5))
    assert not model[0]._forward_hooks
