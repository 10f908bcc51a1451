"""An adapter is added as a whole or not at all: what fails on the way leaves all as it was."""

import peft
import pytest
import tiny
import torch
from tiny import domain_stream, make_strategy
from torch import nn

from avalanche_mgem.huggingface import IncLoRAPlugin, LoRAPlugin, OLoRAPlugin
from avalanche_mgem.huggingface.adapters import adapter_names
from avalanche_mgem.huggingface.undoing import all_or_nothing

ERRORS = [ValueError, RuntimeError, KeyboardInterrupt]


def look(strategy):
    """All of a strategy's model and optimiser that an adapter changes."""
    model, optimizer = strategy.model, strategy.optimizer
    owned = {
        name: {k: list(v) if isinstance(v, dict | list) else id(v) for k, v in vars(m).items()}
        for name, m in model.named_modules()
    }
    return {
        "types": {name: type(module) for name, module in model.named_modules()},
        "attributes": owned,
        "parameters": {
            n: (id(p), p.requires_grad, id(p.grad)) for n, p in model.named_parameters()
        },
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "groups": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "settings": [{**group, "params": None} for group in optimizer.param_groups],
        "state": {id(p): list(state) for p, state in optimizer.state.items()},
        "configurations": list(getattr(model, "peft_config", {})),
    }


def same(before, after):
    values, others = before.pop("values"), after.pop("values")
    assert values.keys() == others.keys()
    assert all(torch.equal(values[name], others[name]) for name in values)
    assert before == after


def failing(monkeypatch, at, error):
    """Let the adapter of the layer number `at` fail when it has been made in half."""
    made = []
    usual = peft.tuners.lora.layer.Linear.reset_lora_parameters

    def reset(self, *arguments):
        made.append(self)
        if len(made) > at:
            raise error("no more")
        usual(self, *arguments)

    monkeypatch.setattr(peft.tuners.lora.layer.Linear, "reset_lora_parameters", reset)


def begin(plugin, n_trained=0):
    """A strategy that has trained so many tasks, with gradients of before."""
    torch.manual_seed(0)
    hidden = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(8, tiny.N_CLASSES))
    optimizer = lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)  # noqa: E731
    strategy = make_strategy(model, [plugin], optimizer=optimizer)
    for experience in domain_stream().train_stream[:n_trained]:
        strategy.train(experience)
    for parameter in strategy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return strategy


def add(strategy, index):
    strategy.experience = domain_stream().train_stream[index]
    strategy.plugins[0].before_train_dataset_adaptation(strategy)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("plugin", "n_trained"), [(LoRAPlugin, 0), (IncLoRAPlugin, 0), (IncLoRAPlugin, 1)]
)
def test_a_failure_leaves_everything(plugin, n_trained, at, error, monkeypatch):
    strategy = begin(plugin(rank=2, seed=0), n_trained)
    before = look(strategy)
    with monkeypatch.context() as patched:
        failing(patched, at, error)
        with pytest.raises(error, match="no more"):
            add(strategy, n_trained)
    same(before, look(strategy))
    assert len(adapter_names(strategy.model)) == n_trained


@pytest.mark.parametrize("plugin", [LoRAPlugin, IncLoRAPlugin, OLoRAPlugin])
def test_after_a_failure_training_is_what_it_would_have_been(plugin, monkeypatch):
    ends = []
    for fails in (False, True):
        strategy = begin(plugin(rank=2, seed=0), n_trained=1)
        second, third = domain_stream().train_stream[1:3]
        if fails and plugin is not LoRAPlugin:
            with monkeypatch.context() as patched:
                failing(patched, 1, RuntimeError)
                with pytest.raises(RuntimeError, match="no more"):
                    strategy.train(second)
        for experience in (second, third):
            torch.manual_seed(1)
            strategy.train(experience)
        ends.append(strategy.model)
    one, other = (dict(model.named_parameters()) for model in ends)
    assert one.keys() == other.keys()
    for name, parameter in one.items():
        assert torch.equal(parameter, other[name])
        assert parameter.requires_grad == other[name].requires_grad


@pytest.mark.parametrize(("at", "layer"), [(0, "0"), (1, "2")])
@pytest.mark.parametrize("n_trained", [0, 1])
def test_the_error_of_peft_names_the_layer(n_trained, at, layer, monkeypatch):
    strategy = begin(IncLoRAPlugin(rank=2), n_trained)
    failing(monkeypatch, at, ValueError)
    with pytest.raises(ValueError, match=rf"target_modules: .* rank=2 into '{layer}': no more"):
        add(strategy, n_trained)


def test_an_optimiser_that_cannot_take_the_adapter_leaves_the_model_too():
    strategy = begin(LoRAPlugin(rank=2))
    strategy.optimizer.param_groups.clear()
    before = look(strategy)
    with pytest.raises(IndexError):
        add(strategy, 0)
    same(before, look(strategy))


def test_a_task_that_begins_again_after_an_error_gets_no_second_adapter():
    strategy = begin(IncLoRAPlugin(rank=2, seed=0))
    first, second = domain_stream().train_stream[:2]
    broken = tiny.Call(before_forward=lambda s: 1 / 0)
    strategy.plugins.append(broken)
    with pytest.raises(ZeroDivisionError):
        strategy.train(first)
    strategy.plugins.remove(broken)
    strategy.train(first)
    assert adapter_names(strategy.model) == ["task0"]
    strategy.train(first)
    strategy.train(second)
    assert adapter_names(strategy.model) == ["task0", "task1", "task2"]


def test_hooks_and_attributes_come_back_in_place():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    inner, weight = model[0], model[1].weight

    def change():
        with all_or_nothing(model):
            model[0] = nn.Identity()
            model[1].weight = nn.Parameter(torch.zeros(2, 2))
            model[1].requires_grad_(False)
            model.note = "new"
            inner._forward_hooks.clear()
            inner.eval()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        change()
    assert model[0] is inner
    assert model[1].weight is weight
    assert weight.requires_grad
    assert inner.training
    assert not hasattr(model, "note")
    model(torch.ones(1, 2))
    assert calls == [1]
    handle.remove()
    model(torch.ones(1, 2))
    assert calls == [1]


def test_what_does_not_fail_stays():
    model = nn.Sequential(nn.Linear(2, 2))
    with all_or_nothing(model):
        model[0] = nn.Identity()
    assert isinstance(model[0], nn.Identity)
