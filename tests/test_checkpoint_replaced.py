"""What training itself puts in the place of a criterion or an optimiser is no other run."""

import pytest
import torch
from avalanche.training.plugins import MIRPlugin, SupervisedPlugin
from avalanche.training.supervised import MIR, CoPE, Naive, StreamingLDA
from avalanche.training.supervised.ar1 import AR1
from avalanche.training.supervised.expert_gate import _ExpertGatePlugin
from avalanche.training.supervised.l2p import LearningToPrompt
from tiny import (
    N_CLASSES,
    N_FEATURES,
    Call,
    class_stream,
    make_model,
    make_strategy,
    parameter_vector,
)
from torch import nn
from torch.optim import SGD, Adam

from avalanche_mgem import ClipGradientPlugin, HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from avalanche_mgem.checkpoint.replaced import replaced_in_training

# CoPE updates its memory by a function that Avalanche itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning")


class Swaps(SupervisedPlugin):
    """Trains by another optimiser and another criterion than the strategy was made with."""

    def before_training_exp(self, strategy, **kwargs):
        strategy.optimizer = Adam(strategy.model.parameters(), lr=0.01)
        strategy._criterion = nn.MultiMarginLoss()


class SwapsOnce(SupervisedPlugin):
    """The same by a helper, by name, and once."""

    done = False

    def before_training(self, strategy, **kwargs):
        if not self.done:
            _swap(strategy, "_criterion", nn.MultiMarginLoss())
        self.done = True


def _swap(strategy, name, value):
    setattr(strategy, name, value) if name == "_criterion" else None


class Joins(SupervisedPlugin):
    """A plugin that another one takes in."""


class TakesIn(SupervisedPlugin):
    """Takes another plugin in, in front of all."""

    def before_training(self, strategy, **kwargs):
        if not any(isinstance(plugin, Joins) for plugin in strategy.plugins):
            strategy.plugins.insert(0, Joins())


class Leaves(SupervisedPlugin):
    """Leaves after the first experience."""

    def after_training_exp(self, strategy, **kwargs):
        strategy.plugins = [plugin for plugin in strategy.plugins if plugin is not self]


class OwnLoss(Naive):
    """A strategy that sets its own criterion as it trains."""

    def _before_training_exp(self, **kwargs):
        self._criterion = nn.MultiMarginLoss()
        super()._before_training_exp(**kwargs)


def _late(strategy):
    strategy.optimizer = SGD(strategy.model.parameters(), lr=0.1)


def make(*plugins, **arguments):
    return make_strategy(make_model(), plugins, optimizer=adam, **arguments)


def adam(model):
    return Adam(model.parameters(), lr=0.02)


def sgd(model):
    return SGD(model.parameters(), lr=0.02)


RUNS = {
    "swaps": lambda: make_strategy(make_model(), [Swaps()], optimizer=sgd),
    "swaps once": lambda: make(SwapsOnce()),
    "swaps by a function": lambda: make(Call(before_training_exp=_late)),
    "takes in": lambda: make(TakesIn(), MIGUPlugin(0.5, skip_tasks=0)),
    "leaves": lambda: make(Leaves(), MIGUPlugin(0.5, skip_tasks=0)),
    "own loss": lambda: make(strategy=OwnLoss),
    "cope": lambda: make(
        strategy=CoPE, mem_size=20, n_classes=N_CLASSES, p_size=N_CLASSES, train_epochs=1
    ),
    "mir": lambda: make(strategy=MIR, mem_size=20, subsample=10, batch_size_mem=4),
    "mir's plugin": lambda: make(MIRPlugin(4, mem_size=20, subsample=10)),
}


def train(strategy, number):
    torch.manual_seed(number)
    strategy.train(class_stream().train_stream[number])


@pytest.mark.parametrize("run", RUNS)
def test_it_goes_on_to_the_bit(run, tmp_path):
    whole, saved, other = (RUNS[run]() for _ in range(3))
    train(whole, 0)
    train(whole, 1)
    train(saved, 0)
    save_checkpoint(saved, tmp_path / "run")
    _, start = load_checkpoint(other, tmp_path / "run")
    assert start == 1
    train(other, 1)
    assert torch.equal(parameter_vector(other.model), parameter_vector(whole.model))
    assert type(other.optimizer) is type(whole.optimizer)
    assert type(other._criterion) is type(whole._criterion)
    assert [type(p) for p in other.plugins] == [type(p) for p in whole.plugins]


@pytest.mark.parametrize("run", ["takes in", "leaves"])
def test_the_plugins_that_stay_are_filled_wherever_they_stand(run, tmp_path):
    saved, other = RUNS[run](), RUNS[run]()
    (migu,) = [plugin for plugin in other.plugins if isinstance(plugin, MIGUPlugin)]
    train(saved, 0)
    save_checkpoint(saved, tmp_path / "run")
    load_checkpoint(other, tmp_path / "run")
    assert any(plugin is migu for plugin in other.plugins)
    assert migu.last_mask is not None


def test_settings_are_compared_plugin_by_plugin(tmp_path):
    save_checkpoint(_trained(make(Leaves(), MIGUPlugin(0.5))), tmp_path / "run")
    with pytest.warns(UserWarning, match=r"settings hold.*plugins\[0\].mask_fraction 0.5 -> 0.7$"):
        load_checkpoint(make(Leaves(), MIGUPlugin(0.7)), tmp_path / "run")


def _trained(strategy):
    train(strategy, 0)
    return strategy


class Own(SupervisedPlugin):
    """Reads, and sets nothing."""

    def before_training(self, strategy, **kwargs):
        self.seen = strategy.optimizer, strategy._criterion, list(strategy.plugins)


@pytest.mark.parametrize(
    ("one", "other", "match"),
    [
        (lambda: make(Own()), lambda: make(Own(), Joins()), "its plugins"),
        (lambda: make(Swaps()), lambda: make(Swaps(), Joins()), "its plugins"),
        (lambda: make(Own()), lambda: make_strategy(make_model(), [Own()]), "its optimizer"),
        (lambda: make(TakesIn()), lambda: make_strategy(make_model(), [TakesIn()]), "optimizer"),
        (lambda: make(Leaves(), strategy=OwnLoss), lambda: make(Leaves()), "its strategy"),
    ],
)
def test_another_run_is_refused_still(one, other, match, tmp_path):
    save_checkpoint(one(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=f"is of another run: {match}|is of another.*{match}"):
        load_checkpoint(other(), tmp_path / "run")


def test_what_training_replaces_is_told_from_the_code():
    expected = {
        Swaps: {"optimizer", "criterion"},
        SwapsOnce: {"criterion"},
        TakesIn: {"plugins"},
        Leaves: {"plugins"},
        Own: set(),
        _ExpertGatePlugin: {"plugins"},
    }
    for kind, what in expected.items():
        assert replaced_in_training(make(kind())) == what
    ours = [MIGUPlugin(), MGEMPlugin(4), HybridMagnitudePlugin(), ClipGradientPlugin(1.0)]
    assert replaced_in_training(make(*ours)) == set()
    for strategy in (AR1, LearningToPrompt):
        made = object.__new__(strategy)
        made.plugins = []
        assert replaced_in_training(made) == {"optimizer"}


# Strategies without an optimiser


def slda(*plugins):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 8))
    return StreamingLDA(
        slda_model=model,
        criterion=nn.CrossEntropyLoss(),
        input_size=8,
        num_classes=N_CLASSES,
        plugins=list(plugins),
        evaluator=None,
    )


def test_a_strategy_without_an_optimiser_goes_on(tmp_path):
    whole, saved, other = slda(), slda(), slda()
    train(whole, 0)
    train(whole, 1)
    train(saved, 0)
    save_checkpoint(saved, tmp_path / "run")
    assert load_checkpoint(other, tmp_path / "run") == (other, 1)
    train(other, 1)
    assert torch.equal(other.muK, whole.muK)
    assert torch.equal(other.Sigma, whole.Sigma)


@pytest.mark.filterwarnings("ignore:.*implements incompatible callbacks:UserWarning")
@pytest.mark.parametrize(
    "plugin",
    [
        MIGUPlugin(),
        MGEMPlugin(4),
        HybridMagnitudePlugin(),
        ClipGradientPlugin(1.0),
        MIGUPlugin(on_nonfinite="skip"),
    ],
)
def test_plugins_that_restrict_steps_refuse_it(plugin):
    name = type(plugin).__name__
    with pytest.raises(ValueError, match=f"{name} .*StreamingLDA has none: got optimizer=None"):
        train(slda(plugin), 0)
