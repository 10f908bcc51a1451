"""Adapters beside Avalanche's own plugins: they train, or are refused by name before training."""

import math

import pytest
import tiny
import torch
from avalanche.models import BaseModel
from avalanche.training import plugins as theirs
from avalanche.training.supervised import DER, MER, ICaRL
from tiny import class_stream, domain_stream, make_strategy
from torch import nn

from avalanche_mgem import HybridMagnitudePlugin
from avalanche_mgem.huggingface import IncLoRAPlugin, LoRAPlugin, OLoRAPlugin
from avalanche_mgem.huggingface.adapters import adapter_names

ADAPTERS = [LoRAPlugin, IncLoRAPlugin, OLoRAPlugin]
ONE_EACH_TASK = ADAPTERS[1:]


class Features(BaseModel, nn.Module):
    """What LFL and feature distillation ask of a model."""

    def __init__(self):
        super().__init__()
        self.keeps, self.features = False, None
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.classifier = nn.Linear(8, tiny.N_CLASSES)

    def forward(self, x):
        features = self.get_features(x)
        if self.keeps:
            self.features = features
        return self.classifier(features)

    def get_features(self, x):
        return self.layers(x)


def keeping(model):
    model.keeps = True
    return theirs.FeatureDistillationPlugin()


def make_model():
    torch.manual_seed(0)
    return Features()


WITH_ALL = {
    "ewc": lambda m: theirs.EWCPlugin(1.0),
    "si": lambda m: theirs.SynapticIntelligencePlugin(0.1),
    "mas": lambda m: theirs.MASPlugin(),
    "lwf": lambda m: theirs.LwFPlugin(1.0, 2.0),
    "lfl": lambda m: theirs.LFLPlugin(1.0),
    "features": keeping,
    "agem": lambda m: theirs.AGEMPlugin(8, 8),
    "gem": lambda m: theirs.GEMPlugin(8, 0.5),
    "replay": lambda m: theirs.ReplayPlugin(16),
    "cope": lambda m: theirs.CoPEPlugin(16, n_classes=tiny.N_CLASSES, p_size=tiny.N_CLASSES),
}
WITH_ONE = {
    "ewc online": lambda m: theirs.EWCPlugin(1.0, "online", 0.5),
    "ewc online, all kept": lambda m: theirs.EWCPlugin(1.0, "online", 0.5, True),
    "cwr": lambda m: theirs.CWRStarPlugin(m, "classifier"),
    "from scratch": lambda m: theirs.FromScratchTrainingPlugin(),
    "gdumb": lambda m: theirs.GDumbPlugin(16),
}
WITH_NONE = {
    "mir": lambda m: theirs.MIRPlugin(8, 16, 8),
    "rwalk": lambda m: theirs.RWalkPlugin(delta_t=2),
    "rar": lambda m: theirs.RARPlugin(8, 16),
}


def run(plugin, peer, *, first=True):
    """Train beside a plugin of Avalanche; return the strategy."""
    model = make_model()
    plugins = [plugin, peer(model)]
    optimizer = lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)  # noqa: E731
    strategy = make_strategy(model, plugins if first else plugins[::-1], optimizer=optimizer)
    for experience in domain_stream().train_stream:
        strategy.train(experience)
    return strategy


def trained_well(strategy, n_adapters):
    model = strategy.model
    assert len(adapter_names(model)) == n_adapters
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert math.isfinite(float(strategy.loss))
    base, now = make_model().layers, model.layers
    assert torch.equal(base[0].weight, now[0].base_layer.weight)
    assert all(adapter.weight.any() for adapter in now[0].lora_B.values())


@pytest.mark.cover
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("plugin", ADAPTERS)
@pytest.mark.parametrize("peer", WITH_ALL)
def test_these_go_together(peer, plugin, first):
    strategy = run(plugin(rank=2, alpha=2, seed=0), WITH_ALL[peer], first=first)
    trained_well(strategy, 1 if plugin is LoRAPlugin else 3)


@pytest.mark.parametrize("peer", WITH_ONE)
def test_these_go_together_with_one_adapter(peer):
    strategy = run(LoRAPlugin(rank=2, alpha=2, seed=0), WITH_ONE[peer])
    trained_well(strategy, 1)


@pytest.mark.parametrize("plugin", ONE_EACH_TASK)
@pytest.mark.parametrize("peer", WITH_ONE)
def test_and_not_with_one_for_each_task(peer, plugin):
    model = make_model()
    other = type(WITH_ONE[peer](model)).__name__
    steps = tiny.Call(before_forward=lambda s: pytest.fail("trained"))
    strategy = make_strategy(model, [steps, WITH_ONE[peer](model), plugin()])
    with pytest.raises(ValueError, match=f"{plugin.__name__} does not go together with {other}"):
        strategy.train(domain_stream().train_stream[0])
    assert not adapter_names(model)


@pytest.mark.parametrize("plugin", [*ADAPTERS, HybridMagnitudePlugin])
@pytest.mark.parametrize("peer", WITH_NONE)
def test_these_do_not_go_together_with_what_is_frozen(peer, plugin):
    if plugin is HybridMagnitudePlugin and peer == "rar":
        return
    model = make_model()
    steps = tiny.Call(before_forward=lambda s: pytest.fail("trained"))
    strategy = make_strategy(model, [steps, plugin(), WITH_NONE[peer](model)])
    with pytest.raises(ValueError, match=f"(?i){plugin.__name__} does not go .* with {peer}"):
        strategy.train(class_stream().train_stream[0])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_hybrid_that_freezes_nothing_goes_together_with_them():
    strategy = make_strategy(
        make_model(), [HybridMagnitudePlugin("initialized"), theirs.RWalkPlugin(delta_t=2)]
    )
    strategy.train(domain_stream().train_stream)


@pytest.mark.parametrize("plugin", ADAPTERS)
@pytest.mark.parametrize("kind", [MER, DER])
def test_strategies_that_keep_the_model_go_together(kind, plugin):
    options = {"mem_size": 16, "train_mb_size": 8} if kind is DER else {"mem_size": 16}
    strategy = make_strategy(
        make_model(),
        [plugin(rank=2, alpha=2)],
        strategy=lambda **arguments: kind(**{**arguments, **options}),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.01),
    )
    for experience in class_stream().train_stream:
        strategy.train(experience)
    trained_well(strategy, 1 if plugin is LoRAPlugin else 3)


def test_icarl_is_refused_beside_one_adapter_for_each_task():
    model = make_model()
    strategy = ICaRL(
        feature_extractor=model.layers,
        classifier=model.classifier,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        memory_size=16,
        buffer_transform=None,
        fixed_memory=True,
        plugins=[IncLoRAPlugin()],
        evaluator=None,
    )
    with pytest.raises(ValueError, match="IncLoRAPlugin does not go together with _ICaRLPlugin"):
        strategy.train(class_stream().train_stream[0])


class LaMAML(tiny.Naive):
    """By its name: Avalanche's own asks for packages that need not be there."""


@pytest.mark.parametrize("plugin", [LoRAPlugin, HybridMagnitudePlugin])
def test_lamaml_is_refused(plugin):
    strategy = make_strategy(make_model(), [plugin()], strategy=LaMAML)
    with pytest.raises(ValueError, match=f"{plugin.__name__} does not go together with LaMAML"):
        strategy.train(domain_stream().train_stream[0])
