"""What mGEM must be equal to where it degenerates."""

import pytest
import torch
from avalanche.training.plugins import GEMPlugin
from tiny import (
    SETTINGS,
    make_model,
    make_strategy,
    parameter_vector,
    relative_distance,
    train,
)

from avalanche_mgem import MGEM, MGEMPlugin

WHOLE_DATA_SET = 1000  # more patterns than any experience has
GAMMAS = (0.0, 0.5)


def trained(plugins, setting="single head", optimizer=None, n_experiences=3, **arguments):
    model, stream = make_model(setting), SETTINGS[setting][1]()
    strategy = make_strategy(model, plugins, optimizer=optimizer, train_epochs=4, **arguments)
    train(strategy, stream.train_stream[:n_experiences])
    return parameter_vector(strategy.model)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("setting", ["single head", "batch norm", "growing head", "a head a task"])
def test_one_module_and_one_group_is_avalanches_gem(setting, gamma):
    theirs = trained([GEMPlugin(WHOLE_DATA_SET, gamma)], setting)
    ours = MGEMPlugin(WHOLE_DATA_SET, gamma, unused_parameters="include", seed=0)
    assert relative_distance(trained([ours], setting), theirs) < 1e-5
    assert ours.last_projection is not None
    plain = trained([], setting)
    assert relative_distance(theirs, plain) > 1e-3  # the restriction was felt at all


@pytest.mark.parametrize("gamma", GAMMAS)
def test_batch_norm_statistics_are_those_of_avalanches_gem(gamma):
    statistics = []
    for plugin in (GEMPlugin(WHOLE_DATA_SET, gamma), MGEMPlugin(WHOLE_DATA_SET, gamma, seed=0)):
        model = make_model("batch norm")
        train(make_strategy(model, [plugin]), SETTINGS["batch norm"][1]().train_stream)
        statistics.append(model[1].running_mean)
    torch.testing.assert_close(*statistics, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_the_first_experience_is_naive_to_the_bit(setting, restrict):
    ours = trained([MGEMPlugin(10, restrict=restrict, seed=0)], setting, n_experiences=1)
    assert torch.equal(ours, trained([], setting, n_experiences=1))


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_steps_that_harm_nobody_are_naive_to_the_bit(restrict):
    """The memory is all of the data that is trained on: descending does it no harm."""
    plugin = MGEMPlugin(1000, 0.5, restrict=restrict, seed=0)
    model, stream = make_model(), SETTINGS["single head"][1]()
    strategy = make_strategy(model, [plugin])
    train(strategy, [stream.train_stream[0]] * 2)
    harmed = plugin.last_projection.violated
    naive = make_strategy(make_model())
    train(naive, [stream.train_stream[0]] * 2)
    assert not harmed
    assert torch.equal(parameter_vector(model), parameter_vector(naive.model))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("setting", ["single head", "batch norm", "a head a task"])
def test_under_plain_sgd_restricting_the_update_is_restricting_the_gradient(setting, gamma):
    # Two experiences: rounding differs, and what differs grows from step to step.
    arguments = {"parameter_groups": "layer", "memory_groups": 3, "seed": 0}
    plugins = [MGEMPlugin(12, gamma, restrict=r, **arguments) for r in ("gradient", "update")]
    gradient, update = (trained([plugin], setting, n_experiences=2) for plugin in plugins)
    assert relative_distance(update, gradient) < 1e-6


def test_the_strategy_is_the_plugin_in_a_naive_strategy():
    arguments = {"memory_strength": 0.3, "memory_groups": 2, "seed": 5}
    plugin = trained([MGEMPlugin(12, **arguments)])
    strategy = trained([], strategy=MGEM, patterns_per_experience=12, **arguments)
    assert torch.equal(plugin, strategy)


def test_the_partition_into_one_block_may_be_written_in_four_ways():
    ways = (
        1,
        {"everything": ["*"]},
        {"everything": ["0", "2"]},
        lambda m: {"m": dict(m.named_parameters())},
    )
    results = [
        trained([MGEMPlugin(12, 0.5, parameter_groups=way, ridge=1e-3, seed=0)]) for way in ways
    ]
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_seeds_decide_the_memory():
    runs = [trained([MGEMPlugin(6, memory_groups=2, seed=seed)]) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
