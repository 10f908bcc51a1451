"""The memory's batches are like those of training, or it is said before training."""

import copy
from collections import namedtuple

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, TransformGroups, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.supervised import Naive
from tiny import Call, make_strategy, parameter_vector, train
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from avalanche_mgem import MGEM, HybridMagnitudePlugin, MGEMPlugin
from avalanche_mgem.bridge.fields import OneByOne


class Samples(Dataset):
    """Sample i is what `make` makes of it, and its class."""

    def __init__(self, make, n=12, n_classes=4):
        self.make, self.targets = make, [i % n_classes for i in range(n)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.make(i), self.targets[i]


def numbers(i, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(i))


def bag(i):
    """A sequence of 3 to 6 vectors."""
    return numbers(i, 3 + i % 4, 6)


def picture(i):
    return numbers(i, 2, 5 + i % 3, 5)


class OfBags(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))).mean(1)


def of_pictures():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


def words(i):
    return numbers(i, 2 + i % 5).mul(10).long() % 7


class OfWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.cell = nn.Embedding(13, 5), nn.GRU(5, 6, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.cell(self.embedding(x))[1][0])


# name -> (sample, model): whose samples differ in size
SIZES = {"bags": (bag, OfBags), "pictures": (picture, of_pictures), "words": (words, OfWords)}


def stream_of(make, n=12, experiences=2, **options):
    sets = [AvalancheDataset([Samples(make, n)], **options) for _ in range(experiences)]
    return benchmark_from_datasets(train=sets).train_stream


def recorded(plugin):
    rows = []
    return rows, Call(after_backward=lambda _: rows.append(plugin._matrix.rows.clone()))


def mean_gradient(model, samples):
    """The slow reference: a pass for each sample."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters))
    for x, y in samples:
        loss = functional.cross_entropy(model(x), y)
        total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    return total / len(samples)


@pytest.mark.cover
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("passes", ["auto", "loop"])
@pytest.mark.parametrize("kind", SIZES)
def test_samples_of_differing_sizes_are_the_mean_over_samples(kind, passes, groups):
    make, model = SIZES[kind]
    torch.manual_seed(1)
    plugin, checked = MGEMPlugin(8, memory_groups=groups, memory_passes=passes, seed=0), []

    def check(strategy):
        for group, row in zip(plugin.memory.closed_groups(), plugin._matrix.rows, strict=False):
            assert isinstance(group.batch, OneByOne)
            assert len(group.batch) == group.size
            expected = mean_gradient(strategy.model, [one[:2] for one in group.batch])
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)
            checked.append(1)

    strategy = make_strategy(
        model(), [plugin, Call(before_backward=check)], batch_size=1, train_epochs=1
    )
    train(strategy, stream_of(make))
    assert len(checked) == 12 * groups
    assert plugin.last_projection is not None


def test_what_makes_a_batch_by_chance_and_what_does_not_count_alike():
    """Bags of one length in the memory, where the stream has others."""
    plugin, rows = MGEMPlugin(4, 0.0, seed=0), []
    strategy = make_strategy(
        OfBags(), [plugin, Call(before_backward=lambda _: rows.append(1))], batch_size=1
    )
    stream = stream_of(lambda i: numbers(i, 4, 6))
    train(strategy, stream[:1])
    group = plugin.memory.closed_groups()[0]
    assert not isinstance(group.batch, OneByOne)
    parameters = list(strategy.model.parameters())
    strategy.experience, both = stream[1], torch.zeros(2, len(parameter_vector(strategy.model)))
    plugin._rows.start_experience()
    plugin._rows.fill(strategy, [group], parameters, both[:1])
    x, y, *_ = group.batch
    group.batch = OneByOne([x[i : i + 1], y[i : i + 1]] for i in range(4))
    plugin._rows.start_experience()
    plugin._rows.fill(strategy, [group], parameters, both[1:])
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-6)


def test_samples_of_differing_sizes_are_drawn_and_measured_too():
    plugin = MGEMPlugin(
        6, memory_groups=2, memory_batch_size=2, generalization_every=1, restrict="update", seed=0
    )
    train(make_strategy(OfBags(), [plugin], batch_size=1), stream_of(bag))
    assert list(plugin.last_generalization) == [0]
    again = copy.deepcopy(plugin)
    assert isinstance(again.memory.closed_groups()[0].batch, OneByOne)


def test_passes_that_must_be_grouped_are_refused_at_the_start():
    plugin = MGEMPlugin(6, memory_groups=2, memory_passes="grouped", seed=0)
    strategy = make_strategy(OfBags(), [plugin], batch_size=1)
    with pytest.raises(ValueError, match="memory_passes='grouped' cannot be: the samples differ"):
        strategy.train(stream_of(bag)[0])


@pytest.mark.parametrize("kind", SIZES)
def test_probes_of_samples_that_differ_in_size(kind):
    make, model = SIZES[kind]
    plugin = HybridMagnitudePlugin(probe_batches=3, low=1, seed=0)
    strategy = make_strategy(model(), [plugin], batch_size=1)
    train(strategy, stream_of(make))
    assert plugin.last_decision.similarity is not None
    strategy.train_mb_size = 12
    strategy.experience, names = (
        stream_of(make)[1],
        [n for n, _ in strategy.model.named_parameters()],
    )
    gradient = plugin._probe.gradient(strategy, strategy.experience.dataset, names)
    samples = [(x[None], torch.tensor([y])) for x, y in Samples(make)]
    expected = mean_gradient(strategy.model, samples)
    found = torch.cat([gradient[name].flatten() for name in names])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def scaled_collate(samples):
    return default_collate([(100 * x, y) for x, y, *_ in samples])


class OwnLoader(Naive):
    """Training sees numbers a hundred times those of the data set."""

    def make_train_dataloader(self, **_):
        self.dataloader = DataLoader(self.adapted_dataset, batch_size=6, collate_fn=scaled_collate)


class OwnOptions(Naive):
    """The same by the options of the usual loader."""

    def _obtain_common_dataloader_parameters(self, **given):
        return super()._obtain_common_dataloader_parameters(**given) | {
            "collate_fn": scaled_collate
        }


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def vector(i):
    return numbers(i, 6)


@pytest.mark.parametrize("selection", ["random", "class-balanced", "ring"])
@pytest.mark.parametrize("kind", [OwnLoader, OwnOptions])
def test_the_loaders_own_collate_function_makes_the_memory(kind, selection):
    seen, probed = [], []
    plugin = MGEMPlugin(
        4,
        memory_groups=2,
        memory_selection=selection,
        generalization_every=None if selection == "ring" else 1,
        seed=0,
    )
    hybrid = HybridMagnitudePlugin(seed=0)
    model = mlp()
    handle = model.register_forward_hook(lambda _, x, __: probed.append(float(x[0].abs().max())))
    note = Call(before_forward=lambda s: seen.append(float(s.mb_x.abs().max())))
    data = [
        AvalancheDataset(
            [Samples(vector)],
            data_attributes=[DataAttribute([i % 4 for i in range(12)], "targets")],
        )
        for _ in range(2)
    ]
    stream = benchmark_from_datasets(train=data).train_stream
    train(make_strategy(model, [plugin, hybrid, note], strategy=kind), stream)
    handle.remove()
    largest = 100 * max(float(vector(i).abs().max()) for i in range(12))
    held_out = [group for group in plugin.memory.held_out_groups() if group is not None]
    for group in (*plugin.memory.closed_groups(), *held_out):
        assert 50 < float(group.batch[0].abs().max()) <= largest + 1e-3
    assert min(seen) > 50
    assert min(probed) > 50  # no forward pass of any kind has seen others


# name -> (evaluation, training): whose evaluation view makes no batch that can be trained on
VIEWS = {
    "sizes": (None, lambda x: x[:, :5]),
    "no tensors": (lambda x: {"a": x} if len(x) == 6 else str(x), lambda x: x[:, :5]),
    "fails": (lambda x: x.no_such, lambda x: x[:, :5]),
    "another size": (lambda x: x[:, :4, :4], lambda x: x[:, :5]),
}


def of_five():
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 4))


def transformed(evaluation, training, make=picture, **options):
    groups = TransformGroups({"train": training, "eval": evaluation})
    return stream_of(make, transform_groups=groups, **options)


@pytest.mark.parametrize("strategy", ["plugin", "strategy"])
@pytest.mark.parametrize("name", VIEWS)
def test_an_evaluation_view_that_cannot_be_trained_on_is_refused_at_the_start(name, strategy):
    model = of_five()
    before = parameter_vector(model)
    stream = transformed(*VIEWS[name])
    for transform in ("eval", "train"):
        if strategy == "plugin":
            made = make_strategy(model, [MGEMPlugin(6, memory_transform=transform, seed=0)])
        else:
            made = MGEM(
                model=model,
                optimizer=torch.optim.SGD(model.parameters(), 0.1),
                train_mb_size=6,
                evaluator=None,
                patterns_per_experience=6,
                memory_transform=transform,
            )
        if transform == "train":
            train(made, stream)
            continue
        with pytest.raises(ValueError, match="pass memory_transform='train'"):
            made.train(stream[0])
        assert torch.equal(before, parameter_vector(model))
    with pytest.raises(ValueError, match="memory_transform: unknown 'test'; known: eval, train"):
        MGEMPlugin(6, memory_transform="test")


@pytest.mark.parametrize("evaluation", [lambda x: x[:, :4, :4], None])
def test_an_evaluation_view_that_differs_and_can_be_trained_on_is_right(evaluation):
    stream = transformed(evaluation, lambda x: x[:, :5], lambda i: numbers(i, 2, 6, 5))
    plugin = MGEMPlugin(6, seed=0)
    train(make_strategy(of_pictures(), [plugin]), stream)
    assert plugin.memory.closed_groups()[0].batch[0].shape[2] == (6 if evaluation is None else 4)


def noisy(x):
    """Draws from every global random state."""
    return x + torch.rand(1) + float(np.random.random())


@pytest.mark.parametrize("selection", ["random", "ring"])
def test_augmentation_in_the_memory_comes_from_the_plugins_seed(selection):
    memories, states = [], []
    for transform, seed in (("train", 1), ("train", 1), ("train", 2), ("eval", 1), (None, None)):
        torch.manual_seed(5)
        np.random.seed(5)
        plugins = []
        if transform is not None:
            arguments = {"memory_transform": transform, "memory_selection": selection}
            plugins = [MGEMPlugin(12, seed=seed, **arguments)]
        strategy = make_strategy(mlp(), plugins)
        stream = transformed(None, noisy, vector)
        train(strategy, stream[:2])
        states.append((torch.get_rng_state(), np.random.get_state()[1]))
        if plugins:
            batch = plugins[0].memory.closed_groups()[0].batch
            memories.append(batch[0][batch[0][:, 0].argsort()])
    assert torch.equal(memories[0], memories[1])
    assert not torch.equal(memories[0], memories[2])
    raw = torch.stack([vector(i) for i in range(12)])
    assert torch.equal(memories[3], raw[raw[:, 0].argsort()])
    for own, (numbers_, other) in zip(states, [states[-1]] * len(states), strict=True):
        assert torch.equal(own[0], numbers_)
        assert np.array_equal(own[1], other)


class Watchful(nn.Module):
    """Has everything that a pass would move, and counts its passes."""

    def __init__(self):
        super().__init__()
        self.norm, self.last, self.passes = nn.BatchNorm2d(2), nn.Linear(2, 4), 0

    def forward(self, x):
        self.passes += 1
        return self.last(functional.dropout(self.norm(x).mean((2, 3))))


def cropped(x):
    return noisy(x)[:, :, :4]


@pytest.mark.parametrize(("evaluation", "passes"), [(noisy, 0), (cropped, 1)])
def test_trying_leaves_no_trace(evaluation, passes):
    """At the first iteration everything is as without the plugins.

    The model is run where evaluation has samples of another shape, and nowhere else.
    """
    found = []
    for plugins in ([], [MGEMPlugin(6, seed=0), HybridMagnitudePlugin(seed=0)]):
        torch.manual_seed(3)
        np.random.seed(3)

        def note(strategy):
            model = strategy.model
            found.append(
                {
                    "tensors": [value.clone() for value in model.state_dict().values()],
                    "torch": [torch.get_rng_state()],
                    "numpy": np.random.get_state()[1].tolist(),
                    "modes": [module.training for module in model.modules()],
                    "gradients": [p.grad for p in model.parameters()],
                    "batch": [field.clone() for field in strategy.mbatch],
                    "passes": model.passes,
                }
            )
            strategy.stop_training()

        strategy = make_strategy(Watchful(), [Call(before_training_iteration=note), *plugins])
        train(strategy, transformed(evaluation, noisy, lambda i: numbers(i, 2, 5, 5))[:1])
    without, beside = found[0], found[len(found) // 2]
    assert beside.pop("passes") - without.pop("passes") == passes
    for name in ("tensors", "torch", "batch"):
        pairs = zip(without.pop(name), beside.pop(name), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert without == beside


DRAWS_FROM = {
    "detection": lambda samples: (
        tuple(s[0] for s in samples),
        tuple({"label": torch.tensor(s[1])} for s in samples),
    ),
    "lists": lambda samples: [[s[0] for s in samples], torch.tensor([s[1] for s in samples])],
    "packed": lambda samples: [torch.cat([s[0] for s in samples]), len(samples)],
}


class OfLists(Naive):
    """Takes batches that are lists of samples."""

    def _unpack_minibatch(self):
        pass

    def forward(self):
        x = self.mb_x
        return self.model(torch.stack(list(x)) if isinstance(x, list | tuple) else x.view(-1, 2))

    def criterion(self):
        return self.mb_output.square().mean()


@pytest.mark.parametrize("name", DRAWS_FROM)
def test_drawing_from_batches_that_are_lists_is_refused_at_the_start(name):
    class WithCollate(OfLists):
        def make_train_dataloader(self, **_):
            given = {"batch_size": 4, "collate_fn": DRAWS_FROM[name]}
            self.dataloader = DataLoader(self.adapted_dataset, **given)

    # Of two numbers each, as many as a list of two samples has entries.
    for batch_size in (2, None, 8):
        model = nn.Linear(2, 3)
        plugin = MGEMPlugin(6, memory_batch_size=batch_size, seed=0)
        strategy = make_strategy(model, [plugin], strategy=WithCollate)
        stream = stream_of(lambda i: numbers(i, 2))
        if batch_size == 2:
            with pytest.raises(ValueError, match="memory_batch_size draws samples"):
                strategy.train(stream[0])
        else:  # nothing is drawn from six samples
            train(strategy, stream)


def stream_with_targets(targets, y):
    data = TensorDataset(torch.randn(6, 2), y)
    attributes = [] if targets is None else [DataAttribute(list(targets), "targets")]
    made = AvalancheDataset([data], data_attributes=attributes)
    return benchmark_from_datasets(train=[made, made]).train_stream


TARGETS = {
    "floats": torch.tensor([0.1, 0.9, 0.4, -0.7, 0.6, -0.2]),
    "several labels": (torch.arange(18).view(6, 3) % 2).float(),
    "vectors": torch.arange(18.0).view(6, 3),
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"memory_split": "class", "memory_groups": 2},
        {"memory_selection": "class-balanced"},
        {"memory_split": "class", "memory_selection": "ring"},
    ],
)
@pytest.mark.parametrize("name", [*TARGETS, "missing"])
def test_targets_that_are_no_classes_are_refused_at_the_start(name, arguments):
    y = TARGETS.get(name, torch.arange(6))
    stream = stream_with_targets(None if name == "missing" else y, y)
    model = nn.Linear(2, y[0].numel())
    before = parameter_vector(model)
    for given in (arguments, {}):
        strategy = make_strategy(model, [MGEMPlugin(6, seed=0, **given)])
        strategy._criterion = lambda output, y: ((output.reshape(y.shape) - y) ** 2).mean()
        if given:
            with pytest.raises(ValueError, match="memory_split='class' and memory_selection"):
                strategy.train(stream[0])
            assert torch.equal(before, parameter_vector(model))
        else:
            train(strategy, stream)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


class WithLength(Endless):
    def __len__(self):
        return 3


@pytest.mark.parametrize("data", [Endless(), WithLength()])
@pytest.mark.parametrize("plugin", [MGEMPlugin(4, seed=0), HybridMagnitudePlugin(seed=0)])
def test_iterable_data_sets_are_refused_by_name(data, plugin):
    class Streams(Naive):
        def make_train_dataloader(self, **_):
            self.dataloader = DataLoader(data, batch_size=2)

    strategy = make_strategy(mlp(), [plugin], strategy=Streams)
    name = (
        f"{type(plugin).__name__} takes samples .* iterable data set .* got {type(data).__name__}"
    )
    with pytest.raises(ValueError, match=name):
        strategy.train(stream_of(vector)[0])


def test_loaders_of_whole_batches_are_refused():
    class Whole(Naive):
        def make_train_dataloader(self, **_):
            self.dataloader = DataLoader(self.adapted_dataset, batch_size=None)

    strategy = make_strategy(mlp(), [MGEMPlugin(4, seed=0)], strategy=Whole)
    with pytest.raises(ValueError, match="this strategy's loader takes whole batches"):
        strategy.train(stream_of(lambda i: numbers(i, 3, 6))[0])


@pytest.mark.parametrize("plugin", [MGEMPlugin(4, seed=0), HybridMagnitudePlugin(seed=0)])
def test_samples_that_make_no_batch_at_all(plugin):
    class Opaque(Naive):
        """Its loader is a generator, which shows no collate function."""

        def make_train_dataloader(self, **_):
            self.dataloader = ([torch.randn(2, 6), torch.tensor([0, 1])] for _ in range(2))

    strategy = make_strategy(mlp(), [plugin], strategy=Opaque)
    with pytest.raises(ValueError, match="no batch can be made of the"):
        strategy.train(stream_of(lambda i: object())[0])


Named = namedtuple("Named", "x y note")


class AsMapping(Naive):
    @property
    def mb_x(self):
        return self.mbatch["x"]

    @property
    def mb_y(self):
        return self.mbatch["y"]

    def _unpack_minibatch(self):
        for name, field in self.mbatch.items():
            self.mbatch[name] = field.to(self.device)


class Kinds(Samples):
    def __init__(self, kind):
        super().__init__(vector)
        self.kind = kind

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return {
            "mapping": {"x": x, "y": y, "note": float(i)},
            "named": Named(x, y, float(i)),
            "more": (x, y, float(i), [i, i]),
            "two inputs": ((x, 2 * x), y),
        }[self.kind]


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x[0] + x[1])


class Moves(Naive):
    def _unpack_minibatch(self):
        pass


KINDS = {
    "mapping": (AsMapping, mlp),
    "named": (Naive, mlp),
    "more": (Moves, mlp),
    "two inputs": (Moves, OfTwo),
}


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_items_of_any_kind(kind, batch_size):
    strategy, model = KINDS[kind]
    sets = [AvalancheDataset([Kinds(kind)]) for _ in range(2)]
    plugin = MGEMPlugin(9, memory_groups=2, memory_batch_size=batch_size, seed=0)
    made = make_strategy(model(), [plugin], strategy=strategy)
    train(made, benchmark_from_datasets(train=sets).train_stream)
    assert plugin.last_projection.dots.shape[1] == 2


@pytest.mark.parametrize("patterns", [5, 12, 100])
def test_a_memory_larger_than_the_data(patterns):
    plugin = MGEMPlugin(patterns, memory_groups=4, memory_batch_size=2, seed=0)
    train(make_strategy(mlp(), [plugin]), stream_of(vector, n=5))
    assert sum(group.size for group in plugin.memory.closed_groups()) == 10


def test_classes_are_those_before_a_transformation_of_targets():
    groups = TransformGroups({"train": (None, lambda y: 3 - y), "eval": (None, lambda y: 3 - y)})
    data = make_avalanche_dataset(
        Samples(vector),
        transform_groups=groups,
        data_attributes=[DataAttribute([i % 4 for i in range(12)], "targets")],
    )
    plugin = MGEMPlugin(12, memory_groups=4, memory_split="class", seed=0)
    stream = benchmark_from_datasets(train=[data]).train_stream
    train(make_strategy(mlp(), [plugin]), stream)
    assert [group.batch[1].tolist() for group in plugin.memory.closed_groups()] == [
        [3] * 3,
        [2] * 3,
        [1] * 3,
        [0] * 3,
    ]
