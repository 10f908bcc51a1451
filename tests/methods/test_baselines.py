"""Avalanche's strategies, put right: synaptic intelligence does something."""

import pytest
import torch
from run_cases import MODEL, permuted
from tiny import Call, make_strategy, parameter_vector, train

from avalanche_mgem.methods.baselines import SynapticIntelligence

# Avalanche's synaptic intelligence passes tensors to NumPy's functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


def intelligence(si_lambda, experiences=3):
    torch.manual_seed(0)
    strategy = make_strategy(
        MODEL((6,), 6), strategy=SynapticIntelligence, si_lambda=si_lambda, train_epochs=3
    )
    train(strategy, permuted(0).train_stream[:experiences])
    return strategy


def test_synaptic_intelligence_finds_importances():
    (plugin,) = (p for p in intelligence(0.0).plugins if hasattr(p, "ewc_data"))
    importances = torch.cat([data.data for data in plugin.ewc_data[1].values()])
    assert importances.max() > 0
    assert torch.isfinite(importances).all()


def test_importances_are_the_path_integral_of_the_first_experience():
    """One experience, stepped through by hand: -sum gradient * step / (movement^2 + eps)."""
    strategy = intelligence(0.0, experiences=1)
    (plugin,) = (p for p in strategy.plugins if hasattr(p, "ewc_data"))
    torch.manual_seed(0)
    model = MODEL((6,), 6)
    start = parameter_vector(model)
    path = torch.zeros_like(start)
    before = {}

    def note(naive):
        before["weights"] = parameter_vector(naive.model)

    def add(naive):
        gradient = torch.cat([p.grad.flatten() for p in naive.model.parameters()])
        path.add_(gradient * (parameter_vector(naive.model) - before["weights"]))

    watch = Call(before_training_iteration=note, after_training_iteration=add)
    train(make_strategy(model, [watch], train_epochs=3), permuted(0).train_stream[:1])
    moved = parameter_vector(model) - start
    expected = (-path / (moved**2 + 1e-7)).clamp(max=0.001)
    found = torch.cat([data.data for data in plugin.ewc_data[1].values()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_stronger_synaptic_intelligence_holds_the_weights():
    def moved(si_lambda):
        first, last = (parameter_vector(intelligence(si_lambda, n).model) for n in (1, 3))
        return float((last - first).norm())

    assert moved(1000.0) < 0.7 * moved(0.0)
