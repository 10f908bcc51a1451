"""Lazy layers have no shape before the first forward pass, and nothing is asked of them."""

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from tiny import Call, domain_stream, make_strategy, parameter_vector, train
from torch import nn
from torch.optim import SGD, Adam

from avalanche_mgem import (
    ClipGradientPlugin,
    HybridMagnitudePlugin,
    MGEMPlugin,
    MIGUPlugin,
)
from avalanche_mgem.evaluation import distance_metrics
from avalanche_mgem.model.lazy import uninitialized

NAN = float("nan")


class LazyUnused(nn.Module):
    """Has a lazy layer that no task uses."""

    def __init__(self):
        super().__init__()
        self.first, self.unused, self.last = nn.LazyLinear(8), nn.LazyLinear(5), nn.LazyLinear(6)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class LazyConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.LazyConv2d(4, 2), nn.LazyBatchNorm2d()
        self.last = nn.LazyLinear(6)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x.view(-1, 1, 2, 3)))).flatten(1))


class PartlyLazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.between, self.last = nn.Linear(6, 8), nn.LazyLinear(8), nn.Linear(8, 6)

    def forward(self, x):
        return self.last(torch.relu(self.between(torch.relu(self.first(x)))))


MODELS = {
    "linear": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(6)),
    "batch norm": lambda: nn.Sequential(
        nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(6)
    ),
    "convolution": LazyConvolution,
    "partly": PartlyLazy,
    "unused": LazyUnused,
}
PLUGINS = {
    "mgem": lambda: [MGEMPlugin(8, seed=0)],
    "p-mgem": lambda: [MGEMPlugin(8, parameter_groups=3, seed=0)],
    "by layer": lambda: [MGEMPlugin(8, parameter_groups="layer", memory_groups=2, seed=0)],
    "by tensor": lambda: [MGEMPlugin(8, parameter_groups="tensor", restrict="update", seed=0)],
    "by name": lambda: [
        MGEMPlugin(
            8, parameter_groups=lambda m: {"all": [n for n, _ in m.named_parameters()]}, seed=0
        )
    ],
    "ring": lambda: [MGEMPlugin(8, memory_selection="ring", on_nonfinite="skip", seed=0)],
    "restore": lambda: [MGEMPlugin(8, memory_batchnorm="restore", generalization_every=1, seed=0)],
    "migu": lambda: [MIGUPlugin(0.5, skip_tasks=0)],
    "migu by weight": lambda: [MIGUPlugin(0.5, score="weight", freeze="update", skip_tasks=0)],
    "migu by gradient": lambda: [MIGUPlugin(0.5, score="gradient", skip_tasks=0)],
    "migu at random": lambda: [
        MIGUPlugin(0.5, score="random", ungated="freeze", skip_tasks=0, seed=0)
    ],
    "hybrid": lambda: [HybridMagnitudePlugin(seed=0)],
    "hybrid frozen": lambda: [HybridMagnitudePlugin("frozen", low=1, on_nonfinite="skip")],
    "hybrid by module": lambda: [HybridMagnitudePlugin(granularity="module", seed=0)],
    "all": lambda: [
        MGEMPlugin(8, seed=0, on_nonfinite="skip", restrict="update"),
        MIGUPlugin(0.5, freeze="update", on_nonfinite="skip"),
        HybridMagnitudePlugin(seed=0, on_nonfinite="skip"),
        ClipGradientPlugin(1.0),
    ],
}


def lazy(name):
    torch.manual_seed(7)
    return MODELS[name]()


def run(model, plugins, experiences=3, **options):
    strategy = make_strategy(model, plugins, **options)
    return train(strategy, domain_stream().train_stream[:experiences])


@pytest.mark.cover
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_trains_every_lazy_model(name, model):
    if (name, model) == ("all", "unused"):
        pytest.skip("the hybrid strategy leaves MIGU with no layer but the unused one")
    plugins = PLUGINS[name]()
    turn = (list(PLUGINS).index(name) + list(MODELS).index(model)) % 2
    optimizer = [lambda m: SGD(m.parameters(), 0.1), lambda m: Adam(m.parameters(), 0.01)][turn]
    strategy = run(lazy(model), plugins, optimizer=optimizer)
    unused = ["unused.weight", "unused.bias"] if model == "unused" else []
    assert uninitialized(strategy.model) == unused
    for plugin in plugins:
        if isinstance(plugin, MGEMPlugin):
            assert plugin.last_projection is not None
            assert plugin.last_projection.dots.shape[1] == 2 * plugin.memory.groups


@pytest.mark.cover
@pytest.mark.parametrize("model", ["batch norm", "partly"])
@pytest.mark.parametrize("name", PLUGINS)
def test_lazy_layers_are_drawn_as_without_a_plugin(name, model):
    starts, states = [], []
    for plugins in ([], PLUGINS[name]()):
        found = lazy(model)
        run(found, plugins, experiences=1, optimizer=lambda m: SGD(m.parameters(), 0.0))
        starts.append(parameter_vector(found))
        states.append(torch.get_rng_state())
    assert torch.equal(*starts)
    assert torch.equal(*states)


@pytest.mark.cover
@pytest.mark.parametrize("model", ["linear", "convolution"])
@pytest.mark.parametrize("name", PLUGINS)
def test_a_lazy_model_trains_as_one_that_has_its_shapes(name, model):
    ready = lazy(model)
    ready(torch.randn(4, 6))

    def take(strategy):
        if strategy.clock.train_iterations == 0:
            values = strategy.model.state_dict()
            own = {k: v for k, v in values.items() if k in dict(ready.named_parameters())}
            ready.load_state_dict(own, strict=False)
            for module in ready.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.reset_running_stats()

    first = run(lazy(model), [*PLUGINS[name](), Call(after_forward=take)], experiences=2)
    second = run(ready, PLUGINS[name](), experiences=2)
    assert torch.equal(parameter_vector(first.model), parameter_vector(second.model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameter_groups": 10**6}, "parameter_groups=1000000 needs at least"),
        ({"parameter_groups": {"a": ["no.such"]}}, "matches no parameter"),
        ({"max_row_bytes": 10}, "take"),
    ],
)
def test_partition_and_size_are_checked_before_the_first_step(arguments, message):
    model, seen = lazy("linear"), []
    note = Call(after_update=lambda _: seen.append(1))
    with pytest.raises(ValueError, match=message):
        run(model, [MGEMPlugin(8, seed=0, **arguments), note])
    assert not seen


@pytest.mark.parametrize("model", ["linear", "batch norm", "convolution", "unused"])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_a_first_step_that_is_not_finite_leaves_the_start(model, restrict):
    """Running statistics that the skipped pass has made are those of a new layer."""
    found = lazy(model)
    plugin = MGEMPlugin(8, restrict=restrict, on_nonfinite="skip", seed=0)
    weights, statistics = [], []

    def spoil(strategy):
        if strategy.clock.train_iterations == 0:
            strategy.loss = strategy.loss * NAN
            weights.extend(p.detach().clone() for p in used(strategy.model.parameters()))

    def note(strategy):
        if strategy.clock.train_iterations == 0:
            pairs = zip(weights, used(strategy.model.parameters()), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
            statistics.extend(strategy.model.named_buffers())
            for name, buffer in strategy.model.named_buffers():
                assert torch.all(buffer == float("running_var" in name))

    strategy = run(found, [plugin, Call(before_backward=spoil, after_update=note)])
    assert plugin.skipped_steps == 1
    assert bool(statistics) == (model in ("batch norm", "convolution"))
    assert all(p.isfinite().all() for p in used(strategy.model.parameters()))


def used(parameters):
    return [p for p in parameters if not isinstance(p, nn.UninitializedParameter)]


def test_a_lazy_head_for_each_task():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.task = nn.Linear(6, 8), 0
            self.heads = nn.ModuleList(nn.LazyLinear(6) for _ in range(3))

        def forward(self, x):
            return self.heads[self.task](torch.relu(self.first(x)))

    def next_task(strategy):
        strategy.model.task = strategy.clock.train_exp_counter

    # The memory of past tasks goes through the new head here: what counts is that it is used.
    plugin = MGEMPlugin(8, parameter_groups="layer", seed=0)
    strategy = run(Heads(), [Call(before_training_exp=next_task), plugin])
    assert plugin.last_projection is not None
    assert not uninitialized(strategy.model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"reference": "start"}, "reference='start' measures a gradient before the first forward")],
)
def test_a_gradient_before_the_first_forward_pass_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(lazy("linear"), [HybridMagnitudePlugin(seed=0, **arguments)])


def test_a_layer_that_a_probe_would_draw_is_refused():
    class Later(nn.Module):
        """Its lazy layer is used from the second task on."""

        def __init__(self):
            super().__init__()
            self.first, self.last, self.task = nn.Linear(6, 8), nn.Linear(8, 6), 0
            self.between = nn.LazyLinear(8)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.last(x if self.task == 0 else self.between(x))

    def next_task(strategy):
        strategy.model.task = strategy.clock.train_exp_counter

    plugin = HybridMagnitudePlugin(seed=0)
    with pytest.raises(ValueError, match=r"between\.weight of a lazy layer had no shape"):
        run(Later(), [Call(before_training_exp=next_task), plugin])


def test_metrics_of_distance_begin_when_there_are_weights():
    model = lazy("linear")
    evaluator = EvaluationPlugin(*distance_metrics(), accuracy_metrics(experience=True))
    strategy = make_strategy(model, [MGEMPlugin(8, seed=0)])
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = evaluator
    strategy.evaluator = evaluator
    train(strategy, domain_stream().train_stream)
    assert any("Distance" in name for name in evaluator.get_last_metrics())
