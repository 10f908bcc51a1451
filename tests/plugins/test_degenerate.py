"""Degenerate data, models and losses: the right result, or an error that says what is wrong."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from tiny import (
    N_CLASSES,
    N_FEATURES,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    relative_distance,
    train,
)
from torch import nn

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin

PLUGINS = {
    "mgem": lambda **k: MGEMPlugin(4, memory_groups=2, seed=0, **k),
    "mgem update": lambda **k: MGEMPlugin(4, memory_groups=2, restrict="update", seed=0, **k),
    "mgem by class": lambda: MGEMPlugin(
        4, memory_groups=2, memory_split="class", memory_selection="class-balanced", seed=0
    ),
    "migu": lambda: MIGUPlugin(0.5),
    "migu update": lambda: MIGUPlugin(0.5, freeze="update"),
    "hybrid": lambda: HybridMagnitudePlugin(seed=0),
    "hybrid by module": lambda: HybridMagnitudePlugin(granularity="module", metric="sign", seed=0),
}


def stream_of(sizes, pick=None):
    """Experiences of so many samples each."""
    own = domain_stream(len(sizes)).train_stream
    pick = pick or (lambda dataset, size: range(size))
    parts = [
        experience.dataset.subset([*pick(experience.dataset, size)])
        for experience, size in zip(own, sizes, strict=True)
    ]
    return with_classes_timeline(benchmark_from_datasets(train=parts)).train_stream


def of_class(dataset, label):
    return [index for index, target in enumerate(dataset.targets) if int(target) == label]


def trained(plugins, stream, model=None, **options):
    strategy = make_strategy(model or make_model(), plugins, **options)
    train(strategy, stream)
    vector = parameter_vector(strategy.model)
    assert vector.isfinite().all()
    return vector


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("name", ["mgem", "migu", "hybrid"])
def test_an_experience_without_samples_is_named(name, empty):
    sizes = [0, 8] if empty == 0 else [8, 0]
    with pytest.raises(ValueError, match=rf"experience {empty} has no sample"):
        trained([PLUGINS[name]()], stream_of(sizes))


@pytest.mark.parametrize("name", PLUGINS)
def test_fewer_samples_than_a_minibatch_or_than_groups_and_one_alone(name):
    stream = stream_of([3, 1, 11, 8])
    plugin = PLUGINS[name]()
    moved = trained([plugin], stream)
    assert not torch.equal(moved, parameter_vector(make_model()))
    if "mgem" in name:
        assert [g.size for g in plugin.memory.closed_groups()][:3] in ([2, 1, 1], [1, 2, 1])


@pytest.mark.parametrize("name", PLUGINS)
def test_one_class_a_task(name):
    """Every gradient of a task pulls one way; groups by class are one."""
    plugin = PLUGINS[name]()
    trained([plugin], stream_of([0, 1, 2], of_class))
    if "mgem" in name:
        groups = 1 if name == "mgem by class" else 2
        assert [len(task) for task in plugin.memory.closed_tasks()] == [groups] * 3
        assert plugin.last_projection.violated


@pytest.mark.parametrize("restrict", ["gradient", "update"])
@pytest.mark.parametrize("solver", ["exact", "approximate"])
def test_parallel_rows_in_many_groups_are_as_one(restrict, solver):
    """Rows that are copies of each other change nothing where the solver sees them together."""
    stream = stream_of([4, 4, 4], lambda dataset, size: [0] * size)

    def plugin(groups):
        return MGEMPlugin(
            4, memory_groups=groups, restrict=restrict, solver=solver, ridge="relative", seed=0
        )

    many, one = plugin(4), plugin(1)
    difference = relative_distance(trained([many], stream), trained([one], stream))
    assert (many.last_projection.dots < 0).any()
    if solver == "exact":
        assert difference < 1e-5


class Few(nn.Module):
    """Two parameters that train, and an output for each class."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2]))
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("out", torch.randn(2, N_CLASSES, generator=generator))

    def forward(self, x):
        return torch.tanh(x[:, :2] * self.weight) @ self.out


@pytest.mark.parametrize("solver", ["exact", "approximate"])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_more_rows_than_parameters(solver, restrict):
    plugin = MGEMPlugin(8, 0.0, memory_groups=4, solver=solver, restrict=restrict, seed=0)
    trained([plugin], domain_stream(4).train_stream, Few())
    assert plugin.last_projection.dots.shape == (1, 12)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("name", PLUGINS)
def test_a_loss_of_any_scale_trains_as_its_own_scale_does(name, scale):
    """A loss times c with a learning rate over c is the same training, but for rounding."""

    def scaled(factor):
        strategy = make_strategy(
            make_model(),
            [PLUGINS[name](**({"ridge": "relative"} if name in ("mgem", "mgem update") else {}))],
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1 / factor),
        )
        plain = nn.CrossEntropyLoss()
        strategy._criterion = lambda output, target: plain(output, target) * factor
        train(strategy, domain_stream().train_stream)
        return parameter_vector(strategy.model)

    one, other = scaled(scale), scaled(1.0)
    assert one.isfinite().all()
    assert relative_distance(one, other) < 1e-3


@pytest.mark.parametrize("name", PLUGINS)
def test_a_loss_without_a_slope_leaves_the_model_as_it_is(name):
    model = make_model()
    model.register_forward_hook(lambda module, inputs, output: output * 0.0)
    plugin = PLUGINS[name]()
    assert torch.equal(trained([plugin], domain_stream().train_stream, model), trained([], []))
    if "mgem" in name:
        assert not plugin.last_projection.violated


class Outside(nn.Module):
    """The loss does not depend on the parameters."""

    def __init__(self, detach=False):
        super().__init__()
        self.body, self.head = nn.Linear(N_FEATURES, 8), nn.Linear(8, N_CLASSES)
        self.detach = detach

    def forward(self, x):
        if self.detach:
            return self.head(torch.relu(self.body(x))).detach()
        return (x * 1.0).requires_grad_()


MODELS = {
    "frozen": (
        lambda: make_model().requires_grad_(False),
        ValueError,
        {"mgem": "no parameter that requires a gradient", "migu": "are frozen", "hybrid": "no tr"},
    ),
    "outside": (
        Outside,
        RuntimeError,
        {"migu": "no output of a gated layer was seen"},
    ),
    "detached": (
        lambda: Outside(detach=True),
        RuntimeError,
        dict.fromkeys(("mgem", "migu", "hybrid"), "does not require grad"),
    ),
}


@pytest.mark.parametrize("name", ["mgem", "migu", "hybrid"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_cannot_learn_is_said_or_left_alone(kind, name):
    make, error, messages = MODELS[kind]
    model = make()
    before = parameter_vector(model)
    if name in messages:
        with pytest.raises(error, match=messages[name]):
            trained([PLUGINS[name]()], domain_stream().train_stream, model)
    else:
        trained([PLUGINS[name]()], domain_stream().train_stream, model)
    assert torch.equal(parameter_vector(model), before)
