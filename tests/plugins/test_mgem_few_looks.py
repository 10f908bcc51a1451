"""What an iteration of mGEM spares: a second look, a measure that nobody reads."""

import pickle

import pytest
import torch
from tiny import Call, domain_stream, make_model, make_strategy, parameter_vector, train
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.bridge import nonfinite
from avalanche_mgem.restriction.block import Block


def run(*others, model=None, **arguments):
    plugin = MGEMPlugin(12, 0.5, seed=0, **arguments)
    strategy = make_strategy(make_model() if model is None else model, [plugin, *others])
    train(strategy, domain_stream().train_stream)
    return plugin, strategy


def counting(monkeypatch, owner, name):
    calls, function = [], getattr(owner, name)

    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_finite_numbers_are_looked_at_with_the_projection_alone(monkeypatch):
    looks = counting(monkeypatch, nonfinite, "all_finite")
    with_memory = []
    note = Call(before_training_iteration=lambda s: with_memory.append((len(looks), s.experience)))
    run(note)
    first = [n for n, experience in with_memory if experience.current_experience == 0]
    assert len(looks) == len(first)  # a step of the first task has no projection


@pytest.mark.parametrize("at", ["after_backward", "before_update"])
@pytest.mark.parametrize("how", ["in place", "anew"])
def test_what_comes_after_the_look_is_seen_at_the_step(at, how):
    def spoil(strategy):
        if strategy.clock.train_exp_counter != 1:
            return
        parameter = strategy.model[2].bias
        if how == "in place":
            parameter.grad[0] = float("nan")
        else:
            parameter.grad = torch.full_like(parameter.grad, float("nan"))

    plugin = MGEMPlugin(12, 0.5, seed=0)
    spoiler = Call(**{at: spoil})
    # Before ours in its event: what a plugin behind ours does is not seen.
    order = [plugin, spoiler] if at == "after_backward" else [spoiler, plugin]
    with pytest.raises(FloatingPointError, match=r"'2\.bias' holds NaN or Inf"):
        train(make_strategy(make_model(), order), domain_stream().train_stream)


@pytest.mark.parametrize("groups", [{"unassigned_parameters": "free"}, {}], ids=["free", "whole"])
def test_a_gradient_where_the_projection_does_not_look_is_looked_at(groups):
    def spoil(strategy):
        if strategy.clock.train_exp_counter == 1:
            strategy.model[2].bias.grad[0] = float("inf")

    plugin = MGEMPlugin(
        12, 0.5, seed=0, parameter_groups={"first": ["0.*"]} if groups else 1, **groups
    )
    with pytest.raises(FloatingPointError, match=r"'2\.bias' holds NaN or Inf"):
        train(
            make_strategy(make_model(), [Call(after_backward=spoil), plugin]),
            domain_stream().train_stream,
        )


def test_a_projection_is_measured_when_it_is_read(monkeypatch):
    measured = counting(monkeypatch, Block, "products")
    violated = []
    peek = Call(before_update=lambda s: violated.append(s.plugins[0]._change))
    plugin, _ = run(peek)
    assert any(change is not None and change.violated for change in violated)
    assert not measured
    first, again = plugin.last_projection, plugin.last_projection
    assert first is again
    assert first.module_names == ("all",)
    torch.testing.assert_close(pickle.loads(pickle.dumps(plugin)).last_projection.dots, first.dots)


class DrawsLate(nn.Module):
    """Draws random numbers from its tenth pass on."""

    def __init__(self):
        super().__init__()
        self.layer, self.passes = nn.Linear(6, 6), 0

    def forward(self, x):
        self.passes += self.training
        return self.layer(x) + (1e-3 * torch.rand(()) if self.passes % 8 == 7 else 0.0)


def test_a_model_that_draws_now_and_then_leaves_the_random_state_alone():
    states = []
    before = Call(before_training_iteration=lambda s: states.append(torch.get_rng_state()))
    after = Call(before_training_iteration=lambda s: states.append(torch.get_rng_state()))
    plugin = MGEMPlugin(12, 0.5, seed=0, memory_groups=3)
    strategy = make_strategy(DrawsLate(), [before, plugin, after])
    train(strategy, domain_stream().train_stream)
    for one, other in zip(states[::2], states[1::2], strict=True):
        assert torch.equal(one, other)
    assert parameter_vector(strategy.model).isfinite().all()
