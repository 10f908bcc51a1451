"""Bad arguments are named before any training."""

import pytest
import torch
from tiny import domain_stream, make_model, make_strategy, parameter_vector

from avalanche_mgem import MGEM, MGEMPlugin
from avalanche_mgem.restriction import QuadprogSolver

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns_per_experience": 0}, "patterns_per_experience must be a whole number >= 1"),
        ({"patterns_per_experience": 2.5}, "patterns_per_experience must be a whole number"),
        ({"patterns_per_experience": True}, "patterns_per_experience must be a whole number"),
        ({"memory_strength": -0.5}, "memory_strength must be a finite number >= 0"),
        ({"memory_strength": NAN}, "memory_strength must be a finite number"),
        ({"memory_strength": INF}, "memory_strength must be a finite number"),
        ({"memory_strength": "0.5"}, "memory_strength must be a finite number"),
        ({"memory_groups": 0}, "memory_groups must be a whole number >= 1"),
        (
            {"memory_groups": 8, "patterns_per_experience": 5},
            "memory_groups=8 needs at least 8 patterns per experience, "
            "got patterns_per_experience=5",
        ),
        ({"parameter_groups": 0}, "parameter_groups must be a whole number >= 1"),
        ({"parameter_groups": -1}, "parameter_groups must be a whole number >= 1"),
        ({"parameter_groups": 1.5}, "parameter_groups must be a whole number, 'layer'"),
        ({"parameter_groups": "layers"}, "parameter_groups.*'layers'.*did you mean 'layer'"),
        ({"parameter_groups": {}}, "parameter_groups must name at least one module"),
        ({"solver": "quadprog"}, "solver: unknown 'quadprog'"),
        ({"solver": 3}, "solver: unknown 3"),
        ({"solver": QuadprogSolver}, "solver: unknown"),
        ({"restrict": "updates"}, "restrict: unknown 'updates'; did you mean 'update'"),
        ({"memory_split": "classes"}, "memory_split: unknown 'classes'; did you mean 'class'"),
        ({"memory_selection": "reservoir"}, "memory_selection: unknown 'reservoir'"),
        ({"memory_strength_per": "group"}, "memory_strength_per: unknown 'group'"),
        ({"ridge": 0.0}, "ridge must be a finite number > 0"),
        ({"ridge": NAN}, "ridge must be a finite number > 0"),
        ({"ridge": "small"}, "ridge must be 'auto', 'relative' or a number > 0, got 'small'"),
        ({"unassigned_parameters": "ignore"}, "unassigned_parameters: unknown 'ignore'"),
        ({"unused_parameters": "skip"}, "unused_parameters: unknown 'skip'"),
        ({"memory_passes": "group"}, "memory_passes: unknown 'group'; did you mean 'grouped'"),
        ({"memory_batch_size": 0}, "memory_batch_size must be a whole number >= 1"),
        ({"refresh_every": 0}, "refresh_every must be a whole number >= 1"),
        ({"refresh_every": 1.5}, "refresh_every must be a whole number"),
        ({"max_row_bytes": -1}, "max_row_bytes must be a whole number >= 1"),
        ({"memory_batchnorm": "freeze"}, "memory_batchnorm: unknown 'freeze'"),
        ({"memory_device": "gpu"}, "memory_device"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"seed": 0.5}, "seed must be a whole number >= 0"),
    ],
    ids=str,
)
def test_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        MGEMPlugin(**{"patterns_per_experience": 10, **arguments})
    model = make_model()
    with pytest.raises(ValueError, match=message):
        make_strategy(model, strategy=MGEM, **{"patterns_per_experience": 10, **arguments})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (10_000, r"parameter_groups=10000 needs at least 10000 trainable parameters, .* has 110"),
        ({"a": ["nothing.*"]}, "the pattern 'nothing.*' matches no parameter"),
        ({"a": ["0.wieght"]}, "matches no parameter; did you mean '0.weight'"),
        ({"a": ["0"]}, "leaves out '2.weight', '2.bias'"),
        ({"a": ["*"], "b": ["0"]}, "the parameter '0.weight' is in both 'a' and 'b'"),
        ({"a": "0.*"}, r"parameter_groups\['a'\] must be a list of patterns"),
        (lambda model: {"a": ["1.weight"]}, "put '1.weight' into 'a', which is no parameter"),
        (lambda model: {"a": ["0.weight"]}, "leaves out '0.bias', '2.weight', '2.bias'"),
    ],
    ids=[
        "too many",
        "no match",
        "typo",
        "left out",
        "twice",
        "string",
        "callable",
        "callable left out",
    ],
)
def test_before_the_first_iteration(groups, message):
    model = make_model()
    before = parameter_vector(model)

    def begin():
        plugin = MGEMPlugin(10, parameter_groups=groups)  # some are refused here already
        make_strategy(model, [plugin]).train(domain_stream().train_stream[0])

    with pytest.raises(ValueError, match=message):
        begin()
    assert torch.equal(parameter_vector(model), before)


def test_a_schedule_that_returns_nonsense_is_named():
    plugin = MGEMPlugin(10, lambda *, experience, iteration: -1.0)
    with pytest.raises(ValueError, match=r"memory_strength must be .* >= 0, got -1\.0"):
        make_strategy(make_model(), [plugin]).train(domain_stream().train_stream[0])


def test_a_model_without_trainable_parameters_is_named():
    model = make_model().requires_grad_(False)
    strategy = make_strategy(model, [MGEMPlugin(10)])
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        strategy.train(domain_stream().train_stream[0])


def test_an_unknown_argument_of_the_strategy_is_named():
    with pytest.raises(TypeError, match="memory_grups"):
        make_strategy(make_model(), strategy=MGEM, patterns_per_experience=10, memory_grups=2)


@pytest.mark.parametrize("restrict", ["gradient", "update"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_the_weights(bad, restrict):
    stream = domain_stream().train_stream
    model = make_model()
    strategy = make_strategy(model, [MGEMPlugin(10, restrict=restrict)])
    strategy.train(stream[0])
    before = parameter_vector(model)
    strategy._criterion = lambda output, target: (
        torch.nn.functional.cross_entropy(output, target) * torch.tensor(bad)
    )
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        strategy.train(stream[1])
    assert torch.equal(parameter_vector(model), before)
