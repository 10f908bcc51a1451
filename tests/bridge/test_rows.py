"""The memory's rows: in one pass or many, from all samples or some, now or a while ago."""

import copy
import pickle

import pytest
import torch
from avalanche.models import SimpleMLP
from tiny import SETTINGS, Call, domain_stream, make_model, make_strategy, parameter_vector, train
from torch import nn

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.model.randomness import preserved_random_state

GROUPED = {"single head", "dropout", "frozen part", "growing head", "a head a task"}


def rows_of(passes, setting="single head", *, model=None, n_experiences=3, **arguments):
    """(The rows of every iteration, the plugin, the strategy) of a run."""
    seen = []
    plugin = MGEMPlugin(8, 0.5, memory_passes=passes, seed=0, **arguments)
    after = Call(after_backward=lambda strategy: seen.append(plugin._matrix.rows.clone()))
    model = make_model(setting) if model is None else model
    strategy = make_strategy(model, [plugin, after])
    train(strategy, SETTINGS[setting][1]().train_stream[:n_experiences])
    return [rows for rows in seen if len(rows)], plugin, strategy


@pytest.mark.cover
@pytest.mark.parametrize("setting", sorted(GROUPED - {"dropout"}))
@pytest.mark.parametrize("memory_groups", [1, 3, 8])
def test_one_pass_gives_the_rows_of_many(setting, memory_groups):
    """Groups of 8, of 3, 3 and 2, and of one sample."""
    grouped, plugin, _ = rows_of("auto", setting, memory_groups=memory_groups)
    loop, _, _ = rows_of("loop", setting, memory_groups=memory_groups)
    assert setting == "a head a task" or plugin._rows._grouped
    for own, expected in zip(grouped, loop, strict=True):
        error = (own - expected).norm(dim=1)
        assert (error <= 1e-5 * expected.norm(dim=1) + 1e-9).all()


def test_the_first_rows_of_one_pass_are_those_of_many_to_the_sixth_digit():
    """Later ones come from parameters that rounding has moved apart."""
    grouped, loop = (rows_of(how, memory_groups=4)[0][0] for how in ("grouped", "loop"))
    assert ((grouped - loop).norm(dim=1) <= 1e-6 * loop.norm(dim=1)).all()


def test_dropout_draws_from_the_plugins_own_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with preserved_random_state():
        one, plugin, _ = rows_of("grouped", "dropout", memory_groups=2)
        other, _, _ = rows_of("grouped", "dropout", memory_groups=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert plugin._rows._grouped
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Mixing(nn.Module):
    """Linear and pointwise modules, and a forward that mixes samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Functional(nn.Module):
    """Uses its layer's weight past the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x) + x @ self.layer.weight


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


@pytest.mark.parametrize("kind", [Mixing, Functional, Twice])
def test_what_the_modules_do_not_show_is_found_out(kind):
    torch.manual_seed(0)
    model = kind()
    found, plugin, _ = rows_of("auto", model=copy.deepcopy(model), memory_groups=2)
    expected, _, _ = rows_of("loop", model=copy.deepcopy(model), memory_groups=2)
    assert plugin._rows._grouped is False
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="memory_passes='grouped' cannot be"):
        rows_of("grouped", model=copy.deepcopy(model), memory_groups=2)


class Noisy(nn.Module):
    """Draws so little that no comparison sees it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x + 1e-9 * torch.randn_like(x))


def test_a_forward_that_draws_draws_from_the_plugins_own_numbers():
    states = []
    plugin = MGEMPlugin(8, 0.5, memory_groups=4, seed=0)
    notes = [Call(before_training_iteration=lambda _: states.append(torch.get_rng_state()))] * 2
    strategy = make_strategy(Noisy(), [notes[0], plugin, notes[1]])
    train(strategy, domain_stream().train_stream)
    assert all(torch.equal(a, b) for a, b in zip(states[::2], states[1::2], strict=True))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x), x


class PartlyWithoutGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.layer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        with torch.no_grad():
            x = self.trunk(x)
        return self.layer(x)


class AllFunctional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight, self.layer.bias)


@pytest.mark.parametrize("kind", [TwoOutputs, PartlyWithoutGradient, AllFunctional])
def test_what_cannot_be_taken_together_goes_one_by_one(kind):
    rows = []
    torch.manual_seed(0)
    model = kind()
    for passes in ("auto", "loop"):
        seen = []
        plugin = MGEMPlugin(8, memory_groups=4, memory_passes=passes, seed=0)
        after = Call(after_backward=lambda _, p=plugin, s=seen: s.append(p._matrix.rows.clone()))
        strategy = make_strategy(copy.deepcopy(model), [plugin, after])
        if kind is TwoOutputs:
            strategy._criterion = lambda output, y: nn.functional.cross_entropy(output[0], y)
        train(strategy, domain_stream().train_stream[:2])
        rows.append(seen)
    for own, expected in zip(*rows, strict=True):
        torch.testing.assert_close(own, expected)


def test_avalanches_own_mlp_with_its_activations_in_place_is_taken_together():
    model = SimpleMLP(num_classes=6, input_size=6, hidden_size=8, drop_rate=0.0)
    grouped, plugin, _ = rows_of("auto", model=copy.deepcopy(model), memory_groups=3)
    loop, _, _ = rows_of("loop", model=copy.deepcopy(model), memory_groups=3)
    assert plugin._rows._grouped
    assert ((grouped[0] - loop[0]).norm(dim=1) <= 1e-6 * loop[0].norm(dim=1)).all()


@pytest.mark.parametrize("memory_groups", [2, 4])
@pytest.mark.parametrize("unused", ["exclude", "include"])
def test_heads_that_see_their_own_tasks_only(memory_groups, unused):
    """Their samples may divide by the number of groups of all tasks, and are not theirs."""
    arguments = {"memory_groups": memory_groups, "unused_parameters": unused}
    found, _, _ = rows_of("auto", "a head a task", **arguments)
    expected, _, _ = rows_of("loop", "a head a task", **arguments)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_the_model_is_compared_once_as_long_as_it_is_the_same():
    calls = []
    plugin = MGEMPlugin(8, memory_groups=2, seed=0)
    strategy = make_strategy(make_model(), [plugin])
    looking = plugin._rows._takes_groups
    plugin._rows._takes_groups = lambda *a: calls.append(1) or looking(*a)
    train(strategy, domain_stream(n_experiences=3).train_stream)
    assert len(calls) == 1
    strategy.model[0] = nn.Linear(6, 8)
    train(strategy, domain_stream().train_stream[:1])
    assert len(calls) == 2


def test_batch_norm_wants_the_loop():
    _, plugin, _ = rows_of("auto", "batch norm", memory_groups=2)
    assert plugin._rows._grouped is False
    with pytest.raises(ValueError, match="BatchNorm1d is neither a linear nor a pointwise layer"):
        rows_of("grouped", "batch norm", memory_groups=2)


class Weighted(nn.CrossEntropyLoss):
    """A mean whose weights depend on which samples are in the group."""

    def __init__(self):
        super().__init__(weight=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))


@pytest.mark.parametrize(
    "criterion",
    [
        Weighted(),
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 7.0)),
        nn.CrossEntropyLoss(ignore_index=0),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.MultiMarginLoss(),
        lambda output, y: nn.functional.cross_entropy(output, y) ** 2,
    ],
)
def test_any_loss_is_taken_group_by_group(criterion):
    rows = []
    for passes in ("grouped", "loop"):
        seen = []
        plugin = MGEMPlugin(12, memory_groups=3, memory_passes=passes, seed=0)
        after = Call(after_backward=lambda _, p=plugin, s=seen: s.append(p._matrix.rows.clone()))
        strategy = make_strategy(make_model(), [plugin, after])
        strategy._criterion = criterion
        train(strategy, domain_stream().train_stream[:2])
        rows.append(next(r for r in seen if len(r)))
    error = (rows[0] - rows[1]).norm(dim=1)
    assert (error <= 1e-6 * rows[1].norm(dim=1)).all()


@pytest.mark.parametrize("passes", ["loop", "grouped"])
def test_as_many_samples_as_there_are_is_no_approximation(passes):
    plain, _, _ = rows_of(passes, memory_groups=2)
    drawn, _, _ = rows_of(passes, memory_groups=2, memory_batch_size=4)
    assert all(torch.equal(a, b) for a, b in zip(plain, drawn, strict=True))


@pytest.mark.parametrize("passes", ["loop", "grouped"])
def test_samples_are_drawn_from_each_group_and_anew(passes):
    """With one layer and no bias a row of one sample tells which sample it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    rows, plugin, _ = rows_of(passes, model=model, memory_groups=2, memory_batch_size=1)
    groups = plugin.memory.closed_groups()[:2]
    drawn = [set(), set()]
    for iteration in rows:
        for at, (group, row) in enumerate(zip(groups, iteration, strict=False)):
            shown = row.view(6, 6)[row.view(6, 6).norm(dim=1).argmax()]
            cosine = torch.nn.functional.cosine_similarity(group.batch[0], shown[None]).abs()
            assert float(cosine.max()) > 1 - 1e-5
            drawn[at].add(int(cosine.argmax()))
    assert all(len(positions) > 1 for positions in drawn)


def test_the_mean_of_the_drawn_rows_is_the_row():
    """Samples are drawn alike: over many draws the noise goes away."""
    plugin = MGEMPlugin(24, memory_batch_size=6, seed=0)
    strategy = make_strategy(make_model(), [plugin])
    stream = domain_stream().train_stream
    train(strategy, stream[:1])
    strategy.experience = stream[1]
    parameters = list(strategy.model.parameters())
    groups, total = plugin.memory.closed_groups(), len(parameter_vector(strategy.model))
    plugin._rows.start_experience()
    draws = torch.zeros(400, total)
    for draw in draws:
        plugin._rows.fill(strategy, groups, parameters, draw[None])
    exact = torch.zeros(1, total)
    plugin._rows.batch_size = None
    plugin._rows.fill(strategy, groups, parameters, exact)
    spread = draws.std(0) / 400**0.5
    assert ((draws.mean(0) - exact[0]).abs() <= 5 * spread + 1e-7).all()
    assert spread.max() > 0


def test_a_memory_that_cannot_be_indexed_says_so():
    plugin = MGEMPlugin(8, memory_batch_size=2, seed=0)
    strategy = make_strategy(make_model(), [plugin])
    stream = domain_stream().train_stream
    train(strategy, stream[:1])
    group = plugin.memory.closed_groups()[0]
    group.batch = [*group.batch, torch.ones(3)]
    with pytest.raises(ValueError, match="memory_batch_size cannot draw from this memory"):
        strategy.train(stream[1])


@pytest.mark.parametrize("every", [2, 3])
def test_rows_serve_as_long_as_they_were_told_to(every):
    seen, _, _ = rows_of("auto", refresh_every=every)
    per_experience = len(seen) // 2
    for start in (0, per_experience):
        own = seen[start : start + per_experience]
        for index in range(1, len(own)):
            assert torch.equal(own[index], own[index - 1]) == (index % every != 0)
    expected, _, _ = rows_of("auto")
    assert torch.equal(seen[0], expected[0])


def test_old_rows_are_scaled_once_where_learning_rates_differ():
    """restrict="update" puts the rows into the metric of the learning rates."""

    def two_rates(model):
        first, *others = model.parameters()
        groups = [{"params": [first], "lr": 0.05}, {"params": others, "lr": 0.2}]
        return torch.optim.SGD(groups)

    violations = []
    for every in (1, 1000):
        plugin = MGEMPlugin(12, 0.0, restrict="update", refresh_every=every, seed=0)
        lengths = []
        note = Call(
            after_update=lambda _, p=plugin, s=lengths: s.append(p._matrix.rows.norm(dim=1).clone())
        )
        strategy = make_strategy(make_model(), [note, plugin], optimizer=two_rates)
        train(strategy, domain_stream().train_stream[:2])
        violations.append([length for length in lengths if len(length)])
    old = torch.stack(violations[1])
    torch.testing.assert_close(old[1:], old[1:2].expand_as(old[1:]))


def test_a_pickled_group_takes_its_own_samples_only():
    _, plugin, _ = rows_of("grouped", memory_groups=4)
    groups = plugin.memory.closed_groups()
    storages = {group.batch[0].untyped_storage().data_ptr() for group in groups[:8]}
    assert len(storages) == 1  # the memory is held once
    again = pickle.loads(pickle.dumps(groups))
    for group, own in zip(again, groups, strict=True):
        assert torch.equal(group.batch[0], own.batch[0])
        assert group.batch[0].untyped_storage().nbytes() == group.batch[0].nbytes
    again = copy.deepcopy(plugin)
    assert len(again.memory.closed_groups()) == len(groups)
    assert not again._rows._chunks._chunks
