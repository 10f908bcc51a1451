"""The rates of steps: those that groups tell, and those that the step itself tells."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_optimizers import SAM, TENTH, UNUSUAL, Lookahead, Multiplier, Scaled
from torch import nn, optim
from torch.optim import SGD

from avalanche_mgem.model.steps import Rate, StepRecorder, step_rates


def parameters(*shapes):
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for each in made:
        each.grad = torch.randn(each.shape, generator=generator)
    return made


def recorded(made, optimizer, recorder=None, step=None):
    recorder = StepRecorder() if recorder is None else recorder
    recorder.start(made, [optimizer])
    (step or optimizer.step)()
    return recorder, recorder.finish(made)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor([0.1]), 1])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_group_tells_its_rate(lr, maximize):
    made = parameters(3)
    (rate,) = step_rates(made, [SGD(made, lr=lr, maximize=maximize)])
    assert rate.is_known
    assert rate.value == pytest.approx(-float(lr) if maximize else float(lr))


def test_a_rate_of_zero_and_a_parameter_without_an_optimiser():
    a, b = parameters(3, 2)
    assert step_rates([a, b], [SGD([a], lr=0.0)]) == [Rate(0.0), Rate(0.0)]


def test_rates_of_two_optimisers_add_up():
    a, b = parameters(3, 2)
    both = [SGD([a, b], lr=0.25), SGD([b], lr=0.5)]
    assert step_rates([a, b], both) == [Rate(0.25), Rate(0.75)]
    assert step_rates([a, b], [both[0], Scaled([b], lr=None)]) == [Rate(0.25), Rate(1.25, False)]


class WithDefault(Multiplier):
    """Tells its lr as any keyword."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Scaled(p, lr=None),
        Scaled,
        lambda p: Scaled(p, lr="relative"),
        lambda p: Scaled(p, lr=0.5, d=1e-6),
        lambda p: Multiplier(p, lr=0.5),
        WithDefault,
        lambda p: Lookahead(p, Multiplier),
        lambda p: SAM(p, Multiplier, lr=0.5),
        optim.LBFGS,
        optim.Rprop,
        optim.Adadelta,
    ],
)
def test_rates_that_are_not_known(make):
    made = parameters(3)
    (rate,) = step_rates(made, [make(made)])
    assert not rate.is_known


@pytest.mark.parametrize("make", [SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.NAdam])
def test_rates_that_are_known(make):
    made = parameters(3)
    assert step_rates(made, [make(made, lr=0.01)]) == [Rate(0.01)]
    assert step_rates(made, [SAM(made, make, lr=0.01)]) == [Rate(0.01)]
    assert step_rates(made, [Lookahead(made, lambda p: make(p, lr=0.01))]) == [Rate(0.01)]


@pytest.mark.parametrize("name", TENTH)
def test_the_scale_of_a_plain_step_is_its_rate(name):
    made = parameters((3, 2), 4)
    gradients = [p.grad.clone() for p in made]
    recorder, updates = recorded(made, TENTH[name](made))
    assert recorder.metric == [1.0, 1.0]
    torch.testing.assert_close(updates, gradients, rtol=1e-5, atol=1e-6)
    assert recorder._steps == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_step_is_the_rate_times_the_update(name):
    made = parameters((3, 2), 4)
    optimizer = UNUSUAL[name](made)
    recorder = StepRecorder()
    for _ in range(3):
        before = [p.detach().clone() for p in made]
        _, updates = recorded(made, optimizer, recorder)
        for p, old, rate, factor, update in zip(
            made, before, recorder._steps, recorder.metric, updates, strict=True
        ):
            torch.testing.assert_close(old - p, update * (rate / factor), rtol=1e-4, atol=1e-7)


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 100))
def test_an_update_is_as_long_as_the_gradient(size, times, seed):
    torch.manual_seed(seed)
    made = parameters((3, 2), 5)
    groups = [{"params": [made[0]], "lr": times}, {"params": [made[1]]}]
    recorder, _ = recorded(made, Multiplier(groups, size=size))
    # The rate is relative to the group's, so that groups of plain SGD have theirs.
    assert recorder._steps == pytest.approx([times * size, size], rel=1e-2)


def test_known_rates_stay_what_they_are_beside_others():
    a, b = made = parameters(3, 4)
    groups = [{"params": [a], "lr": 0.25}, {"params": [b], "lr": None}]
    recorder, updates = recorded(made, Scaled(groups, size=1.0))
    assert recorder._steps[0] == 0.25
    assert float(updates[1].norm()) == pytest.approx(float(b.grad.norm()) * recorder.metric[1])


def test_what_moves_without_a_rate_or_without_a_gradient_is_seen():
    a, b, c, d = made = parameters(3, 2, 4, 5)
    c.grad = d.grad = None
    optimizer = SGD([a, c], lr=0.5)

    def step():
        optimizer.step()
        with torch.no_grad():
            b.sub_(b.grad, alpha=0.1)
            c.mul_(0.9)

    recorder, updates = recorded(made, optimizer, step=step)
    assert recorder._steps == pytest.approx([0.5, 0.1, 0.5, 0.0])
    assert updates[3] is None
    assert updates[2] is not None


def test_an_optimiser_that_leaves_no_gradient_behind():
    made = parameters(3, 2)
    optimizer = Scaled(made, lr=None)

    def step():
        optimizer.step()
        optimizer.zero_grad()

    recorder, _ = recorded(made, optimizer, step=step)
    assert recorder._steps == pytest.approx([0.1, 0.1])


def test_steps_without_a_gradient_have_the_scale_of_the_step_before():
    made = parameters(3)
    optimizer, recorder = Scaled(made, lr=None), StepRecorder()

    def drift():
        with torch.no_grad():
            made[0].add_(0.3)

    made[0].grad.zero_()
    recorded(made, optimizer, recorder, drift)
    assert recorder._steps == pytest.approx([0.3 * 3**0.5])  # an update of length one
    made[0].grad.fill_(1.0)
    recorded(made, optimizer, recorder)
    made[0].grad.zero_()
    recorded(made, optimizer, copy.deepcopy(recorder), drift)
    recorded(made, optimizer, recorder, drift)
    assert recorder._steps == pytest.approx([0.1])
    recorded(made, optimizer, recorder, lambda: None)
    assert recorder.finish(made)[0].abs().max() == 0


def test_steps_that_are_taken_again_reach_what_is_wanted():
    made = parameters((3, 2), 4)
    before = [p.detach().clone() for p in made]
    optimizer = Scaled([{"params": [made[0]], "lr": None}, {"params": [made[1]], "lr": 2.0}])
    recorder, updates = recorded(made, optimizer)
    taken = torch.cat([u.flatten() for u in updates])
    wanted = taken * torch.linspace(-1, 1, len(taken))
    recorder.redo(made, taken, wanted)
    moved = torch.cat([(old - p).flatten() for old, p in zip(before, made, strict=True)])
    scale = torch.cat(
        [
            torch.full((p.numel(),), rate / factor)
            for p, rate, factor in zip(made, recorder._steps, recorder.metric, strict=True)
        ]
    )
    torch.testing.assert_close(moved, wanted * scale, rtol=1e-4, atol=1e-6)
    recorder.undo(made)
    assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True))
