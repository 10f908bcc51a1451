"""Steps that shrink with the number of tasks: of the body, by t^-p, whatever the optimiser."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from tiny import (
    SETTINGS,
    Call,
    assert_equal_states,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch.optim import SGD, Adam, AdamW

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin

OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.2),
    "momentum": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
}


def trained(plugins, setting="single head", optimizer="adamw", **arguments):
    model = make_model(setting)
    make = OPTIMIZERS[optimizer]
    strategy = make_strategy(model, plugins, optimizer=make, train_epochs=2, **arguments)
    train(strategy, SETTINGS[setting][1]().train_stream)
    return strategy.model.state_dict()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("setting", ["single head", "batch norm", "a head a task"])
def test_without_decay_it_is_the_plain_run_to_the_bit(setting, optimizer):
    plain = trained([], setting, optimizer)
    for arguments in (
        {"mode": "initialized"},
        {"mode": "decay", "magnitude_decay": 0.0},
        {"mode": "initialized", "magnitude": lambda task, similarity: 1.0},
    ):
        assert_equal_states(
            trained([HybridMagnitudePlugin(**arguments)], setting, optimizer), plain
        )


class Steps:
    """What each iteration's step was, by a plain optimiser from the same place and as taken."""

    def __init__(self, head):
        self.seen, self.head = [], head
        self.before = Call(before_update=self.remember)
        self.after = Call(after_update=self.compare)

    def remember(self, strategy):
        self.twin = copy.deepcopy((strategy.model, strategy.optimizer))

    def compare(self, strategy):
        model, optimizer = self.twin
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p, own in zip(model.parameters(), strategy.model.parameters(), strict=True):
            p.grad = own.grad
        optimizer.step()
        task = strategy.clock.train_exp_counter + 1
        plain = dict(model.named_parameters())
        for name, p in strategy.model.named_parameters():
            taken, whole = p.detach() - start[name], plain[name].detach() - start[name]
            self.seen.append((task, name.startswith(self.head), taken, whole))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_steps_of_the_body_are_scaled_and_those_of_the_head_are_not(optimizer, p):
    steps = Steps(head="2")
    trained(
        [steps.before, HybridMagnitudePlugin("decay", magnitude_decay=p), steps.after],
        optimizer=optimizer,
    )
    assert {(task, head) for task, head, _, _ in steps.seen} == {
        (task, head) for task in (1, 2, 3) for head in (True, False)
    }
    for task, head, taken, whole in steps.seen:
        factor = 1.0 if head else task**-p
        torch.testing.assert_close(taken, factor * whole, rtol=1e-4, atol=1e-6)


def test_running_statistics_are_not_scaled():
    """A magnitude of zero leaves the body where it is, and its statistics follow the data."""
    still = HybridMagnitudePlugin("initialized", magnitude=lambda task, similarity: float(task < 2))
    model = make_model("batch norm")
    strategy = make_strategy(model, [still], optimizer=OPTIMIZERS["adamw"])
    stream = SETTINGS["batch norm"][1]().train_stream
    train(strategy, stream[:1])
    before = copy.deepcopy(model.state_dict())
    train(strategy, stream, first=1)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
        *("3.weight", "3.bias"),
    }


def test_low_magnitude_takes_the_place_of_freezing():
    steps = Steps(head="2")
    hybrid = HybridMagnitudePlugin("frozen", low=0, low_magnitude=0.25)
    trained([steps.before, hybrid, steps.after], optimizer="sgd")
    for task, head, taken, whole in steps.seen:
        factor = 1.0 if head or task == 1 else 0.25
        torch.testing.assert_close(taken, factor * whole, rtol=1e-4, atol=1e-6)


def test_a_magnitude_of_ones_own_is_told_task_and_similarity():
    told = []

    def magnitude(*, task, similarity):
        told.append((task, similarity))
        return 0.5

    trained([HybridMagnitudePlugin(low=1, magnitude=magnitude, seed=0)])
    assert [task for task, _ in told] == [1, 2, 3]
    assert told[0][1] is None
    assert all(-1 <= similarity <= 1 for _, similarity in told[1:])


def test_a_magnitude_that_is_no_number_is_refused_before_the_first_step():
    steps = []
    plugins = [
        HybridMagnitudePlugin("decay", magnitude=lambda task, similarity: -1.0),
        Call(before_update=steps.append),
    ]
    with pytest.raises(ValueError, match=r"^magnitude must be a finite number >= 0"):
        trained(plugins)
    assert not steps


def test_without_boundaries_decisions_are_counted():
    told = []
    plugin = HybridMagnitudePlugin(
        "decay", decide_every=4, magnitude=lambda task, similarity: told.append(task) or 1.0
    )
    online = split_online_stream(domain_stream().train_stream, experience_size=8)
    strategy = make_strategy(make_model(), [plugin])
    train(strategy, [experience for experience, _ in zip(online, range(9), strict=False)])
    assert told == list(range(1, len(told) + 1))
    assert len(told) >= 2
    with pytest.raises(ValueError, match=r"^decide_every must be a number"):
        train(make_strategy(make_model(), [HybridMagnitudePlugin("decay")]), [next(iter(online))])


def test_the_scaled_step_stays_in_mgems_cone():
    seen = []

    def remember(strategy):
        seen.append(parameter_vector(strategy.model))

    def look(strategy):
        step = parameter_vector(strategy.model) - seen[-1]
        for row in mgem._matrix.rows[: len(mgem._bounds)]:
            room = 1e-4 * float(row.norm() * step.norm()) + 1e-7
            assert float(row @ -step) >= -room
            looked.append(row)

    looked, mgem = [], MGEMPlugin(12, 0.0, memory_groups=2, restrict="update", seed=0)
    hybrid = HybridMagnitudePlugin("decay", magnitude_decay=1.0)
    plugins = [Call(before_update=remember), hybrid, mgem, Call(after_update=look)]
    trained(plugins, optimizer="momentum")
    assert len(looked) > 5


def test_behind_a_restricted_update_it_is_refused():
    plugins = [MGEMPlugin(4, restrict="update"), HybridMagnitudePlugin("decay")]
    with pytest.raises(ValueError, match=r"^HybridMagnitudePlugin .* MGEMPlugin: .*before that"):
        trained(plugins)


def test_a_copy_goes_on_as_the_original():
    strategy = make_strategy(
        make_model(),
        [HybridMagnitudePlugin("decay")],
        optimizer=lambda m: Adam(m.parameters(), lr=0.02),
    )
    stream = domain_stream().train_stream
    train(strategy, stream[:2])
    other = copy.deepcopy(strategy)
    after = [parameter_vector(train(s, stream, first=2).model) for s in (strategy, other)]
    assert torch.equal(*after)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"magnitude_decay": -0.1}, "^magnitude_decay must be a finite number >= 0"),
        ({"low_magnitude": 1.5}, r"^low_magnitude must be in \[0, 1\]"),
        ({"magnitude": 0.5}, "^magnitude must be None or a callable"),
        ({"magnitude": lambda: 1, "magnitude_decay": 1}, "^magnitude_decay and magnitude: only"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HybridMagnitudePlugin(**arguments)
