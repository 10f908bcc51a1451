"""A hold on an optimiser: bit for bit as a plain step with the masked rows put back by hand."""

import copy
import pickle
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import Conv1D
from torch import nn
from transformers.optimization import Adafactor

from avalanche_mgem.model import element_wise, stand_in, step_hold
from avalanche_mgem.model.layers import find_gated_layers
from avalanche_mgem.model.step_hold import hold_rows

AdamW = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1)
ADAFACTORS = {"transformers": partial(Adafactor, lr=0.1, weight_decay=0.1, relative_step=False)}
if hasattr(torch.optim, "Adafactor"):  # from torch 2.5 on
    ADAFACTORS["torch"] = partial(torch.optim.Adafactor, lr=0.1, weight_decay=0.1)


def make_model(width=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, width), Conv1D(4, width), nn.Conv2d(4, 3, 1, bias=False), nn.Linear(3, 2)
    )


def draw_gradients(*models, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        slope = torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.grad = slope.clone()


def draw_kept(layers, seed, probability=0.5):
    generator = torch.Generator().manual_seed(seed)
    scores = {layer.name: torch.rand(layer.n_rows, generator=generator) for layer in layers}
    return {name: score < probability for name, score in scores.items()}


def all_tensors(model, optimizer):
    """Copies of the parameters and of their state, by name."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach().clone()
        state = optimizer.state.get(parameter, {})
        found |= {f"{name} {key}": torch.as_tensor(v).clone() for key, v in state.items()}
    return found


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), key


def step_by_hand(layers, kept, optimizer):
    """A plain step, of which everything in masked rows is undone; new state is zero there."""
    before = {}
    for layer in layers:
        for rows in layer.rows:
            state = optimizer.state.get(rows.parameter, {})
            before[rows.name] = {key: torch.as_tensor(v).clone() for key, v in state.items()}
            before[rows.name]["parameter"] = rows.parameter.detach().clone()
    optimizer.step()
    for layer in layers:
        for rows in layer.rows:
            after = {**optimizer.state.get(rows.parameter, {}), "parameter": rows.parameter.data}
            for key, tensor in after.items():
                if torch.is_tensor(tensor) and tensor.shape == rows.parameter.shape:
                    masked = ~kept[layer.name]
                    old = before[rows.name].get(key, torch.zeros_like(tensor))
                    rows.of(tensor)[masked] = rows.of(old)[masked]


@given(st.integers(1, 7), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(0, 1000))
def test_steps_are_those_by_hand(width, probability, seed):
    model = make_model(width)
    twin = copy.deepcopy(model)
    optimizer, other = AdamW(model.parameters()), AdamW(twin.parameters())
    layers, others = find_gated_layers(model), find_gated_layers(twin)
    for i in range(3):
        draw_gradients(model, twin, seed=seed + i)
        kept = draw_kept(layers, seed + i, probability)
        hold = hold_rows(optimizer, layers, kept)
        optimizer.step()
        hold.remove()
        step_by_hand(others, kept, other)
        assert_same(all_tensors(model, optimizer), all_tensors(twin, other))


def test_groups_keep_their_rates_and_what_is_not_gated_moves():
    model = make_model()
    twin = copy.deepcopy(model)

    def make(m):
        groups = [{"params": m[0].parameters(), "lr": 0.3}, {"params": m[1:].parameters()}]
        return AdamW([{**groups[0], "weight_decay": 0.0}, groups[1]])

    optimizer, other = make(model), make(twin)
    layers, others = find_gated_layers(model), find_gated_layers(twin)
    kept = {"0": torch.arange(5) < 2, "1": torch.arange(4) < 3, "2": torch.arange(3) < 1}
    hold = hold_rows(optimizer, layers, kept)
    for i in range(3):
        draw_gradients(model, twin, seed=i)
        model[2].weight.grad = twin[2].weight.grad = None
        optimizer.step()
        step_by_hand(others, kept, other)
        assert_same(all_tensors(model, optimizer), all_tensors(twin, other))
    assert model[2].weight not in optimizer.state
    hold.remove()


@pytest.mark.parametrize("name", ADAFACTORS)
def test_state_of_another_shape(name):
    model = make_model()
    twin, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = ADAFACTORS[name](model.parameters())
    other = ADAFACTORS[name](twin.parameters())
    layers = find_gated_layers(model)
    draw_gradients(model, twin)
    kept = draw_kept(layers, 2)
    hold_rows(optimizer, layers, kept)
    optimizer.step()
    other.step()
    assert torch.equal(model[0].weight[kept["0"]], twin[0].weight[kept["0"]])
    assert torch.equal(model[1].weight[:, kept["1"]], twin[1].weight[:, kept["1"]])
    draw_gradients(model, seed=1)
    before = copy.deepcopy(optimizer.state[model[0].weight])
    optimizer.step()
    for layer, weight in (("0", "0.weight"), ("2", "2.weight")):
        moved = model.get_parameter(weight) != start.get_parameter(weight)
        assert torch.equal(moved.flatten(1).any(1), kept[layer])
    assert torch.equal((model[1].weight != start[1].weight).any(0), kept["1"])
    (row,) = [key for key in before if "row" in key]
    moved = optimizer.state[model[0].weight][row] != before[row]
    assert torch.equal(moved.flatten(), kept["0"])
    assert (optimizer.state[model[1].weight][row] != 0).all()  # of inputs, no rows of units


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_a_step_leaves_whole_parameters(broken):
    model = make_model()
    layers = find_gated_layers(model)
    gated = [rows.parameter for layer in layers for rows in layer.rows]
    rest = [p for p in model.parameters() if not any(p is each for each in gated)]
    optimizer = AdamW([{"params": gated}, {"params": rest}])
    draw_gradients(model)
    optimizer.step()
    where = [parameter.data_ptr() for parameter in gated]
    gradients = [parameter.grad for parameter in gated]
    before, kept = all_tensors(model, optimizer), draw_kept(layers, 0)
    hold = hold_rows(optimizer, layers, kept)
    group = optimizer.param_groups[broken]
    betas, group["betas"] = group["betas"], None
    with pytest.raises(TypeError):
        optimizer.step()
    after = all_tensors(model, optimizer)
    if broken == 0:
        assert_same(after, before)
    for key in ("0.weight", "0.weight exp_avg", "2.weight"):
        assert torch.equal(after[key][~kept[key[0]]], before[key][~kept[key[0]]])
    assert [parameter.data_ptr() for parameter in gated] == where
    assert all(p.grad is gradient for p, gradient in zip(gated, gradients, strict=True))
    group["betas"] = betas
    optimizer.step()
    assert not torch.equal(gated[0], after["0.weight"])
    hold.remove()


def test_a_scheduler_and_its_wrapper_of_the_step():
    model = make_model()
    twin = copy.deepcopy(model)
    optimizer, other = AdamW(model.parameters()), AdamW(twin.parameters())
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (optimizer, other)]
    layers, others = find_gated_layers(model), find_gated_layers(twin)
    kept = draw_kept(layers, 0)
    hold_rows(optimizer, layers, kept)
    for i in range(3):
        draw_gradients(model, twin, seed=i)
        optimizer.step()
        step_by_hand(others, kept, other)
        for schedule in schedules:
            schedule.step()
        assert_same(all_tensors(model, optimizer), all_tensors(twin, other))
    assert optimizer.param_groups[0]["lr"] == 0.1 / 8


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler(fused):
    model = make_model()
    optimizer = AdamW(model.parameters(), fused=fused)
    layers, scaler = find_gated_layers(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    twin = copy.deepcopy(model)
    other = AdamW(twin.parameters(), fused=fused)
    kept = draw_kept(layers, 0)
    hold_rows(optimizer, layers, kept)
    for i in range(3):
        draw_gradients(model, twin, seed=i)
        before = all_tensors(model, optimizer)
        for parameter in model.parameters():
            parameter.grad *= float(scaler.scale(torch.ones(())))
        if i == 2:
            model[0].weight.grad[~kept["0"]] = torch.inf  # in a masked row
        scaler.step(optimizer)
        scaler.update()
        if i == 2:
            assert_same(all_tensors(model, optimizer), before)
        else:
            step_by_hand(find_gated_layers(twin), kept, other)
            ours, theirs = all_tensors(model, optimizer), all_tensors(twin, other)
            assert ours.keys() == theirs.keys()
            for key, tensor in ours.items():
                torch.testing.assert_close(tensor, theirs[key], rtol=1e-6, atol=1e-7)
    assert not hasattr(optimizer, "found_inf")


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_wrapper_of_accelerate(accelerator):
    model = make_model()
    optimizer = accelerator.prepare_optimizer(AdamW(model.parameters()))
    start, layers = copy.deepcopy(model), find_gated_layers(model)
    kept = draw_kept(layers, 0)
    hold = hold_rows(optimizer, layers, kept)
    draw_gradients(model)
    optimizer.step()
    assert torch.equal((model[0].weight != start[0].weight).any(1), kept["0"])
    hold.remove()
    optimizer.step()
    assert (model[0].weight != start[0].weight).all()


@pytest.mark.parametrize("make", [AdamW, next(reversed(ADAFACTORS.values()))])
def test_holds_of_one_optimiser_add_up_and_those_of_two_do_not(make):
    model = make_model()
    first = make([*model[0].parameters(), *model[1].parameters()])
    second = make([*model[2].parameters(), *model[3].parameters()])
    start, layers = copy.deepcopy(model), find_gated_layers(model)
    hold_rows(first, layers, {"0": torch.tensor([True, True, False, False, True])})
    hold_rows(first, layers, {"0": torch.tensor([False, True, True, False, True])})
    hold_rows(first, layers, {"1": torch.tensor([False, True, False, False])})
    hold_rows(second, layers, {"2": torch.tensor([False, True, False])}, still=[model[3].bias])
    draw_gradients(model)
    first.step()
    second.step()
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    moved = [new != old for new, old in pairs]
    assert moved[0].any(1).tolist() == [False, True, False, False, True]
    assert moved[2].any(0).tolist() == [False, True, False, False]
    assert moved[4].flatten(1).any(1).tolist() == [False, True, False]
    assert moved[5].all()
    assert not moved[6].any()


@pytest.mark.parametrize("make", [AdamW, ADAFACTORS["transformers"]])
def test_what_is_still_is_as_without_a_gradient(make):
    model = make_model()
    twin = copy.deepcopy(model)
    optimizer, other = make(model.parameters()), make(twin.parameters())
    still = [model[0].weight, model[0].bias, model[3].weight]
    hold = hold_rows(optimizer, find_gated_layers(model), {"0": torch.arange(5) < 3}, still=still)
    for i in range(2):
        draw_gradients(model, twin, seed=i)
        gradients = [parameter.grad for parameter in still]
        twin[0].weight.grad = twin[0].bias.grad = twin[3].weight.grad = None
        optimizer.step()
        other.step()
        assert_same(all_tensors(model, optimizer), all_tensors(twin, other))
        assert all(p.grad is g for p, g in zip(still, gradients, strict=True))
    assert not any(parameter in optimizer.state for parameter in still)
    hold.remove()
    optimizer.step()
    assert not torch.equal(model[0].bias, twin[0].bias)


def test_gradients_that_a_closure_makes():
    model = make_model()
    start, layers = copy.deepcopy(model), find_gated_layers(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    kept = draw_kept(layers, 0)
    hold_rows(optimizer, layers, kept, still=[model[3].weight])

    def closure():
        optimizer.zero_grad()
        loss = sum(((parameter - 1.0) ** 2).sum() for parameter in model.parameters())
        loss.backward()
        return loss

    for keywords in ({}, {"closure": closure}):
        assert optimizer.step(*([] if keywords else [closure]), **keywords) > 0
    assert torch.equal((model[0].weight != start[0].weight).any(1), kept["0"])
    assert torch.equal(model[3].weight, start[3].weight)
    assert model[3].weight.grad is not None
    assert not torch.equal(model[3].bias, start[3].bias)


def test_removed_it_leaves_nothing_and_copies_hold_nothing():
    model = make_model()
    optimizer, layers = AdamW(model.parameters()), find_gated_layers(model)
    kept = draw_kept(layers, 0)
    hold = hold_rows(optimizer, layers, kept)
    both = copy.deepcopy((model, optimizer, hold)), pickle.loads(pickle.dumps((model, optimizer)))
    for twin, other, *_ in both:
        start = copy.deepcopy(twin)
        draw_gradients(twin)
        other.step()
        assert (twin[0].weight != start[0].weight).all()
        assert not other._optimizer_step_pre_hooks
    both[0][2].remove()
    start = copy.deepcopy(model)
    draw_gradients(model)
    optimizer.step()
    assert torch.equal((model[0].weight != start[0].weight).any(1), kept["0"])
    hold.remove()
    hold.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()
    assert (model[0].weight != start[0].weight).all()


def test_rows_that_are_all_kept_are_stepped_where_they_are():
    model = make_model()
    optimizer, layers = AdamW(model.parameters()), find_gated_layers(model)
    seen = []
    optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append(args[0]))
    hold_rows(optimizer, layers, {"0": torch.ones(5, dtype=bool), "1": torch.arange(4) < 1})
    draw_gradients(model)
    optimizer.step()
    (rest,) = seen
    shown = {id(p) for p in rest.param_groups[0]["params"]}
    gated = {name for name, p in model.named_parameters() if id(p) not in shown}
    assert gated == {"1.weight"}


@pytest.mark.parametrize("cached", [1, 7])
def test_pieces_of_a_parameter_are_one_step(monkeypatch, cached):
    monkeypatch.setattr(stand_in, "CACHED", cached)
    monkeypatch.setattr(element_wise, "CACHED", cached)
    test_groups_keep_their_rates_and_what_is_not_gated_moves()


def test_a_mask_that_does_not_fit_is_refused():
    model = make_model()
    optimizer = AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"kept must be bool \[5\] for '0', got \(4,\)"):
        hold_rows(optimizer, find_gated_layers(model), {"0": torch.ones(4, dtype=bool)})
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("kind", [AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_large_parameters_that_are_mostly_kept_step_whole_and_are_put_back(kind, monkeypatch):
    monkeypatch.setattr(stand_in, "CACHED", 4)
    monkeypatch.setattr(element_wise, "CACHED", 4)
    model = make_model()
    twin = copy.deepcopy(model)
    optimizer, other = kind(model.parameters()), kind(twin.parameters())
    layers, others = find_gated_layers(model), find_gated_layers(twin)
    whole = []
    plain = element_wise.step_alone
    monkeypatch.setattr(step_hold, "step_alone", lambda o, p: (whole.append(p), plain(o, p)))
    for seed in range(3):
        kept = {layer.name: torch.arange(layer.n_rows) != seed for layer in layers}
        draw_gradients(model, twin, seed=seed)
        hold = hold_rows(optimizer, layers, kept)
        optimizer.step()
        hold.end()
        step_by_hand(others, kept, other)
        assert_same(all_tensors(model, optimizer), all_tensors(twin, other))
    assert len(whole) >= 3
