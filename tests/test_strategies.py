"""Strategies that are a template with one plugin: what their constructors take, and how."""

import inspect

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from avalanche.training.templates.base import PositionalArgumentsDeprecatedWarning
from tiny import Call, make_model, make_strategy, sgd
from torch import nn

from avalanche_mgem.strategies import MGEM, MIGU, HybridMagnitude

STRATEGIES = {MGEM: {"patterns_per_experience": 4}, MIGU: {}, HybridMagnitude: {}}


class Inherited(MGEM):
    """Adds nothing."""


class Extended(MIGU):
    """Has a constructor of its own."""

    def __init__(self, *, share=0.5, **options):
        super().__init__(mask_fraction=share, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("strategy", [Naive, *STRATEGIES, Inherited])
def test_arguments_by_position_are_taken_with_avalanches_warning(strategy, count):
    model = make_model()
    given = {
        "model": model,
        "optimizer": sgd(model),
        "criterion": nn.MSELoss(),
        "train_mb_size": 7,
    }
    settings = STRATEGIES[MGEM] if strategy is Inherited else STRATEGIES.get(strategy, {})
    by_name = {**dict(list(given.items())[count:]), **settings, "evaluator": EvaluationPlugin()}
    with pytest.warns(PositionalArgumentsDeprecatedWarning, match=f"passing {count} positional"):
        made = strategy(*list(given.values())[:count], **by_name)
    assert made.model is model
    assert made.optimizer is given["optimizer"]
    assert made._criterion is given["criterion"]
    assert made.train_mb_size == 7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_signature_names_what_is_taken(strategy):
    parameters = inspect.signature(strategy).parameters
    template = inspect.signature(Naive.__init__).parameters
    own = inspect.signature(strategy.PLUGIN).parameters
    assert {*parameters} == ({*template} - {"self", "base_kwargs"}) | {*own} | {"peval_mode"}
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    with pytest.raises(TypeError, match="unknown_setting"):
        make_strategy(make_model(), strategy=strategy, unknown_setting=1, **STRATEGIES[strategy])


def test_what_is_passed_reaches_the_plugin_and_further_ones_come_after():
    last = Call()
    strategy = make_strategy(make_model(), [last], strategy=MIGU, mask_fraction=0.25)
    assert isinstance(strategy.plugins[0], MIGU.PLUGIN)
    assert strategy.plugins[0].mask_fraction == 0.25
    assert strategy.plugins[1] is last


def test_a_subclass_may_have_its_own_constructor():
    torch.manual_seed(0)
    strategy = make_strategy(make_model(), strategy=Extended, share=0.75)
    assert strategy.plugins[0].mask_fraction == 0.75
