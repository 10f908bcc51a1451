"""memory_strength="auto": Polyak's step on the memory, in whole training runs."""

import copy

import pytest
import torch
from tiny import Call, domain_stream, make_model, make_strategy, parameter_vector, sgd, train
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.evaluation import restriction_metrics
from avalanche_mgem.restriction import LinearSchedule, PolyakStrength


def trained(plugin, **options):
    """The parameters after training with a plugin on the tiny stream."""
    strategy = make_strategy(make_model(), [plugin], train_epochs=3, **options)
    return parameter_vector(train(strategy, domain_stream().train_stream).model)


def auto(strength="auto", **arguments):
    return MGEMPlugin(12, strength, seed=0, **arguments)


def test_auto_is_polyak_without_a_limit():
    assert auto().memory_strength == PolyakStrength(factor=1.0, maximum=None)
    assert torch.equal(trained(auto()), trained(auto(PolyakStrength())))


@pytest.mark.parametrize("passes", ["loop", "grouped"])
@pytest.mark.parametrize("groups", [1, 3])
def test_both_ways_of_memory_passes_agree(passes, groups):
    arguments = {"memory_groups": groups, "parameter_groups": 2}
    expected = trained(auto(memory_passes="auto", **arguments))
    found = trained(auto(memory_passes=passes, **arguments))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_under_sgd_the_update_is_restricted_as_the_gradient_is():
    expected = trained(auto(memory_groups=2))
    torch.testing.assert_close(trained(auto(memory_groups=2, restrict="update")), expected)


def test_the_criterion_may_sum_instead_of_average():
    """gamma and the rows scale, the push does not: with equal minibatches and a rate to match."""

    def run(reduction, lr):
        return trained_with(nn.CrossEntropyLoss(reduction=reduction), lr)

    torch.testing.assert_close(run("sum", 0.3 / 8), run("mean", 0.3), rtol=1e-3, atol=1e-4)


def trained_with(criterion, lr):
    # As many samples in a minibatch as in the memory, so that both losses scale alike.
    plugin = MGEMPlugin(8, "auto", seed=0)
    strategy = make_strategy(make_model(), [plugin], optimizer=lambda model: sgd(model, lr))
    strategy._criterion = criterion
    return parameter_vector(train(strategy, domain_stream().train_stream).model)


def test_a_maximum_of_zero_is_a_strength_of_zero():
    assert torch.equal(trained(auto(PolyakStrength(maximum=0.0))), trained(auto(0.0)))


def test_a_limit_that_always_binds_is_that_strength():
    bound = auto(PolyakStrength(factor=1e9, maximum=LinearSchedule(0.1, 0.4, 3)))
    expected = trained(auto(LinearSchedule(0.1, 0.4, 3)))
    torch.testing.assert_close(trained(bound), expected)


class Shifted(nn.CrossEntropyLoss):
    """A loss with the same gradient that is negative."""

    def forward(self, input, target):
        return super().forward(input, target) - 100.0


def test_a_negative_loss_asks_for_no_push():
    def run(strength):
        strategy = make_strategy(make_model(), [auto(strength)], train_epochs=3)
        strategy._criterion = Shifted()
        return parameter_vector(train(strategy, domain_stream().train_stream).model)

    assert torch.equal(run("auto"), run(0.0))


def two_rates(model):
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}]
    return torch.optim.SGD(groups, lr=0.05)


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_with_several_rates_the_linear_model_of_the_loss_is_brought_to_zero(restrict):
    """Push alone: of the step, what the bounds make of it, summed with each parameter's rate."""
    seen = []

    def look(strategy):
        # The rows lie in the metric of the rates under "update", and a rate applies to them once.
        if plugin.last_projection is None or not plugin.last_projection.violated:
            return
        rows = plugin._matrix.rows[: len(plugin._bounds)].double()
        push = plugin.last_projection.lower @ rows
        sizes = [p.numel() for p in strategy.model.parameters()]
        rates = torch.tensor([0.3, 0.3, 0.05, 0.05]).repeat_interleave(torch.tensor(sizes))
        shares = torch.tensor(plugin._bounds.weights).double()
        slope = shares @ rows
        decrease = 0.3 * push @ slope if restrict == "update" else (rates * push) @ slope
        loss = float(plugin._rows.loss(torch.tensor(plugin._bounds.weights)))
        seen.append(float(decrease) / loss)

    plugin = auto(memory_groups=3, restrict=restrict)
    strategy = make_strategy(
        make_model(), [plugin, Call(after_update=look)], optimizer=two_rates, train_epochs=3
    )
    train(strategy, domain_stream().train_stream)
    assert len(seen) > 5
    assert seen == pytest.approx([1.0] * len(seen), rel=1e-4)


def test_an_optimizer_that_finds_its_steps_itself_is_refused_before_training():
    strategy = make_strategy(
        make_model(), [auto()], optimizer=lambda m: torch.optim.LBFGS(m.parameters())
    )
    with pytest.raises(ValueError, match=r"^memory_strength='auto' .* LBFGS .*restrict='update'"):
        train(strategy, domain_stream().train_stream)


class InADimension(nn.CrossEntropyLoss):
    """A loss of shape [1], as some of Avalanche's are."""

    def forward(self, input, target):
        return super().forward(input, target).reshape(1)


@pytest.mark.parametrize("passes", ["loop", "grouped"])
def test_a_loss_may_have_a_dimension(passes):
    def run(criterion):
        plugin = auto(memory_groups=2, memory_passes=passes)
        strategy = make_strategy(make_model(), [plugin])
        strategy._criterion = criterion
        return parameter_vector(train(strategy, domain_stream().train_stream).model)

    torch.testing.assert_close(run(InADimension()), run(nn.CrossEntropyLoss()))


def test_what_a_loss_cannot_fall_below_is_taken_off():
    class Above(nn.CrossEntropyLoss):
        def forward(self, input, target):
            return super().forward(input, target) + 2.0

    def run(strength, criterion):
        strategy = make_strategy(make_model(), [auto(strength, memory_groups=2)])
        strategy._criterion = criterion
        return parameter_vector(train(strategy, domain_stream().train_stream).model)

    expected = run("auto", nn.CrossEntropyLoss())
    torch.testing.assert_close(run(PolyakStrength(floor=2.0), Above()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_label_smoothing_wants_a_floor_or_a_maximum(restrict):
    def run(strength):
        strategy = make_strategy(make_model(), [auto(strength, restrict=restrict)])
        strategy._criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        train(strategy, domain_stream().train_stream)

    with pytest.raises(ValueError, match=r"^memory_strength='auto' .*label_smoothing=0.1.*floor"):
        run("auto")
    run(PolyakStrength(floor=0.3))
    run(PolyakStrength(maximum=0.5))


@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_maximize_is_refused(restrict):
    strategy = make_strategy(
        make_model(),
        [auto(restrict=restrict)],
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, maximize=True),
    )
    with pytest.raises(ValueError, match=r"^memory_strength='auto' .* SGD has maximize=True"):
        train(strategy, domain_stream().train_stream)


def test_an_infinite_loss_on_the_memory_is_told_as_that():
    class InfiniteLater(nn.CrossEntropyLoss):
        def forward(self, input, target):
            loss = super().forward(input, target)
            return loss + float("inf") if len(target) == 12 else loss  # the memory's batch

    strategy = make_strategy(make_model(), [auto(memory_passes="loop")])
    strategy._criterion = InfiniteLater()
    with pytest.raises(FloatingPointError, match="the loss on the memory is not finite"):
        train(strategy, domain_stream().train_stream)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Rprop])
def test_update_takes_any_optimizer(optimizer):
    plugin = auto(restrict="update")
    after = trained(plugin, optimizer=lambda m: optimizer(m.parameters(), lr=0.01))
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("given", ["autos", "", None, PolyakStrength])
def test_another_text_is_refused(given):
    with pytest.raises(ValueError, match=r"^memory_strength"):
        MGEMPlugin(4, given)


def test_the_metrics_tell_strength_and_push():
    from avalanche.training.plugins import EvaluationPlugin

    told, plugin = [], auto(memory_groups=2)
    metrics = restriction_metrics()
    strategy = make_strategy(
        make_model(),
        [
            plugin,
            Call(
                after_update=lambda s: told.append(
                    (
                        plugin.last_memory_strength,
                        plugin.last_projection and plugin.last_projection.push,
                    )
                )
            ),
        ],
    )
    strategy.plugins.append(EvaluationPlugin(*metrics))
    train(strategy, domain_stream().train_stream)
    told = [(gamma, push) for gamma, push in told if gamma is not None]
    assert told[0][0] > 0
    means = [sum(column) / len(told) for column in zip(*told, strict=True)]
    result = metrics[0].result()
    assert [result["MemoryStrength"], result["Push"]] == pytest.approx(means)


def test_a_copy_goes_on_as_the_original():
    plugin = auto(memory_groups=2)
    strategy = make_strategy(make_model(), [plugin])
    stream = domain_stream().train_stream
    train(strategy, stream[:2])
    other = copy.deepcopy(strategy)
    after = [parameter_vector(train(s, stream, first=2).model) for s in (strategy, other)]
    assert torch.equal(*after)
