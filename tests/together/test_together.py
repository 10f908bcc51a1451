"""Our plugins alone, in pairs and together, beside everything: what each case must hold to."""

import copy
import itertools
import pickle

import pytest
import torch
from pairwise import allowed_pairs, pairs_of, pairwise_cover
from together_cases import (
    FACTORS,
    adagrad_begins_anew,
    different,
    experiences_of,
    plugins_of,
    random_states,
    strategy_of,
    train,
    values_of,
)
from together_checks import Copier, Watch, hooks_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:Metric Rising used by the EarlyStopping plugin is not computed yet:UserWarning"
)

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
CASES = pairwise_cover(FACTORS)


def as_id(case):
    return "-".join(level.replace(" ", "_") for level in case.values())


def check_end(strategy, needs_gradient, hooks=()):
    """Check what must be so whenever an experience is over.

    needs_gradient: which parameters did before. hooks: that were there.
    """
    assert set(hooks_of(strategy.model, strategy.optimizer)) <= set(hooks)
    assert all(module.training for module in strategy.model.modules())
    named = dict(strategy.model.named_parameters())
    assert {name: named[name].requires_grad for name in needs_gradient} == needs_gradient
    assert all(value.isfinite().all() for value in strategy.model.state_dict().values())


def check_case(case):
    """Train with our plugins, and go on from copies; without them, and with free ones."""
    if case["optimizer"] == "adagrad" and not adagrad_begins_anew():
        pytest.skip("Avalanche empties the optimiser's state, which this torch's Adagrad needs")
    copied, experiences, ours = COPIES[case["copy"]], experiences_of(case), plugins_of(case)
    watch, copier = Watch(ours, case["optimizer"]), Copier(case["moment"], ours, copied)
    strategy = strategy_of(case, ours.values(), [watch, copier])
    needs_gradient = {n: p.requires_grad for n, p in strategy.model.named_parameters()}
    start, states, last = values_of(strategy.model), [], len(experiences) - 1
    for index in train(strategy, experiences):
        check_end(strategy, needs_gradient)
        states.append(random_states())
        if index + 1 == last:
            branch, copier.iteration = copied(strategy), strategy.clock.train_iterations
    end = values_of(strategy.model)
    assert watch.wrong == []
    assert all(torch.equal(start[n], end[n]) for n, needs in needs_gradient.items() if not needs)
    for _ in train(branch, experiences, start=last):
        check_end(branch, needs_gradient)
    assert different(values_of(branch.model), end) == []
    check_copy_of_a_step(case, copier, experiences[last:], needs_gradient)
    assert different(values_of(strategy.model), end) == []
    check_without_restriction(case, experiences, states)
    return watch.looked


def check_copy_of_a_step(case, copier, experiences, needs_gradient):
    """Check that what was copied in the midst of a step can train."""
    model, ours, optimizer = copier.parts
    strategy = strategy_of(case, ours.values())
    strategy.model, strategy.optimizer = model, optimizer
    # A copied forward pass has copies of its hooks, which do nothing.
    hooks = hooks_of(model, optimizer)
    for _ in train(strategy, experiences):
        check_end(strategy, needs_gradient, hooks)


def check_without_restriction(case, experiences, states):
    """Check that ours change nothing where they restrict nothing, and never the random states.

    states: the global random ones after each experience of the run with ours.
    """
    alone, ends = strategy_of(case), []
    for index in train(alone, experiences):
        assert random_states() == states[index]
        ends.append(values_of(alone.model))
    ours = plugins_of(case, free=True)
    free = strategy_of(case, ours.values())
    for index in train(free, experiences):
        if "mgem" in ours and ours["mgem"].last_projection is not None:
            break
        assert different(values_of(free.model), ends[index]) == []
        assert random_states() == states[index]


@pytest.mark.parametrize("case", CASES, ids=as_id)
def test_in_each_pair_of_everything_all_holds(case):
    check_case(case)


def test_the_cases_have_all_pairs():
    found = set.union(*map(pairs_of, CASES))
    assert found == allowed_pairs(FACTORS, lambda case: True)
    assert len(CASES) < 70


# Of these every combination; the other factors take turns, so that each meets each of these.
PRODUCT = ("plugins", "peer", "body", "head", "stream")


def product_of_cases():
    """Every case of the five; the other factors' levels take turns in different rhythms."""
    others = [name for name in FACTORS if name not in PRODUCT]
    for turn, levels in enumerate(itertools.product(*(FACTORS[name] for name in PRODUCT))):
        case = dict(zip(PRODUCT, levels, strict=True))
        for at, name in enumerate(others):
            choices = FACTORS[name]
            case[name] = choices[(turn + turn // (at + len(choices))) % len(choices)]
        yield {name: case[name] for name in FACTORS}


@pytest.mark.slow
@pytest.mark.parametrize("plugins", FACTORS["plugins"])
@pytest.mark.parametrize("peer", FACTORS["peer"])
def test_all_plugins_peers_models_and_streams(plugins, peer):
    for case in product_of_cases():
        if (case["plugins"], case["peer"]) == (plugins, peer):
            try:
                check_case(case)
            except Exception as error:
                raise AssertionError(f"case {case}") from error
