"""Epochs in which a new head trains alone: when there are any, and what stays the same in them."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from tiny import (
    N_CLASSES,
    N_FEATURES,
    SETTINGS,
    Call,
    assert_equal_states,
    class_stream,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.experiment import METHODS

OPTIMIZERS = {
    "momentum": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
}


class Normalised(MultiTaskModule):
    """A shared layer with batch norm, and a head for each task."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(N_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.classifier = MultiHeadClassifier(8, initial_out_features=6)

    def forward(self, x, task_labels):
        return self.classifier(self.body(x), task_labels)


def growing():
    layers = nn.Linear(N_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU()
    return nn.Sequential(*layers, IncrementalClassifier(8, 2))


class Epochs:
    """Whether the body, its optimiser's state and its statistics were the same after each epoch."""

    def __init__(self):
        self.still = []
        self.first = Call(before_training_epoch=self.remember)
        self.last = Call(after_training_epoch=self.compare)

    @staticmethod
    def body(strategy):
        found = {}
        for name, parameter in strategy.model.named_parameters():
            if "classifier" not in name:
                found[name] = parameter.detach()
                for key, value in strategy.optimizer.state.get(parameter, {}).items():
                    found[f"{name}/{key}"] = torch.as_tensor(value)
        buffers = strategy.model.named_buffers()
        found |= {name: value for name, value in buffers if "classifier" not in name}
        return {name: value.clone() for name, value in found.items()}

    def remember(self, strategy):
        self.before = self.body(strategy)

    def compare(self, strategy):
        after = self.body(strategy)
        same = [n in self.before and torch.equal(after[n], self.before[n]) for n in after]
        self.still.append(all(same))


def watched(model, stream, plugin, optimizer="adamw", others=(), epochs=3):
    torch.manual_seed(7)
    seen = Epochs()
    strategy = make_strategy(
        model(),
        [seen.first, *others, plugin, seen.last],
        optimizer=OPTIMIZERS[optimizer],
        train_epochs=epochs,
    )
    train(strategy, stream)
    assert all(p.requires_grad for p in strategy.model.parameters())
    assert all(module.training for module in strategy.model.modules())
    return seen.still


@pytest.mark.cover
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [Normalised, growing])
@pytest.mark.parametrize("mode", ["initialized", "decay"])
def test_a_new_head_trains_alone_at_the_start_of_each_task_but_the_first(mode, model, optimizer):
    stream = class_stream(task_labels=model is Normalised).train_stream
    plugin = HybridMagnitudePlugin(mode, head_epochs=2)
    assert watched(model, stream, plugin, optimizer) == 3 * [False] + 2 * [True, True, False]


@pytest.mark.parametrize("mode", ["adaptive", "frozen"])
def test_it_goes_with_modules_that_a_task_freezes(mode):
    stream = class_stream(task_labels=True).train_stream
    for low, rest in ((0, True), (1, False)):
        plugin = HybridMagnitudePlugin(mode, head_epochs=1, low=low, threshold=-2.0)
        still = watched(Normalised, stream, plugin)
        assert still == 3 * [False] + 2 * [True, rest, rest]


@pytest.mark.parametrize("setting", ["single head", "batch norm", "dropout"])
def test_where_all_tasks_share_a_head_nothing_changes(setting):
    states = []
    for head_epochs in (0, 1):
        plugin = HybridMagnitudePlugin("decay", head_epochs=head_epochs)
        strategy = make_strategy(make_model(setting), [plugin], train_epochs=2)
        train(strategy, SETTINGS[setting][1]().train_stream)
        states.append(strategy.model.state_dict())
    assert_equal_states(*states)


def test_a_head_that_has_trained_is_not_new_when_its_task_comes_again():
    first, second, _ = class_stream(task_labels=True).train_stream
    plugin = HybridMagnitudePlugin("initialized", head_epochs=1)
    still = watched(Normalised, [first, second, first], plugin, epochs=2)
    assert still == [False, False, True, False, False, False]


def test_heads_that_evaluation_has_made_before_are_new_all_the_same():
    benchmark = class_stream(task_labels=True)
    ahead = Call(
        before_training_exp=lambda s: [
            s.model.classifier.adaptation(e) for e in benchmark.train_stream
        ]
    )
    plugin = HybridMagnitudePlugin("initialized", head_epochs=1)
    still = watched(Normalised, benchmark.train_stream, plugin, others=[ahead], epochs=2)
    assert still == [False, False, True, False, True, False]


def test_a_task_that_was_interrupted_has_a_new_head_again():
    stops = [1]

    def stop(strategy):
        if strategy.clock.train_exp_counter in stops and strategy.clock.train_exp_epochs == 1:
            stops.clear()
            raise RuntimeError("stop")

    stream = class_stream(task_labels=True).train_stream
    plugin, seen = HybridMagnitudePlugin("decay", head_epochs=1), Epochs()
    plugins = [seen.first, plugin, seen.last, Call(before_update=stop)]
    strategy = make_strategy(Normalised(), plugins, train_epochs=2)
    strategy.train(stream[0])
    with pytest.raises(RuntimeError, match="stop"):
        strategy.train(stream[1])
    strategy.train(stream[1])
    assert seen.still == [False, False, True, True, False]


class Listed(nn.Module):
    """A list of heads, of which the task at hand has one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(N_FEATURES, 8)
        self.classifier = nn.ModuleList([nn.Linear(8, N_CLASSES) for _ in range(3)])
        self.task = -1

    def forward(self, x):
        return self.classifier[self.task](torch.relu(self.body(x)))


def test_sub_experiences_have_it_at_the_start_of_their_task():
    online = split_online_stream(
        domain_stream().train_stream, experience_size=12, access_task_boundaries=True
    )

    def choose(strategy):
        strategy.model.task += strategy.experience.is_first_subexp

    plugin = HybridMagnitudePlugin("initialized", head_epochs=1)
    chosen = Call(before_training_exp=choose)
    still = watched(Listed, list(online), plugin, others=[chosen], epochs=2)
    assert still == 4 * [False] + 2 * [True, False, False, False]


@pytest.mark.parametrize("beside", [MGEMPlugin(4, memory_groups=2), MIGUPlugin(0.5)])
def test_it_goes_beside_what_restricts_the_gradient(beside):
    stream = class_stream(task_labels=True).train_stream
    plugin = HybridMagnitudePlugin("initialized", head_epochs=1)
    still = watched(Normalised, stream, plugin, others=[beside], optimizer="momentum", epochs=2)
    assert still == [False, False, True, False, True, False]


def test_a_copy_goes_on_as_the_original():
    stream = class_stream(task_labels=True).train_stream
    plugin = HybridMagnitudePlugin("decay", head_epochs=1)
    strategy = make_strategy(Normalised(), [plugin], optimizer=OPTIMIZERS["adamw"], train_epochs=2)
    train(strategy, stream[:2])
    other = copy.deepcopy(strategy)
    after = [parameter_vector(train(s, stream, first=2).model) for s in (strategy, other)]
    assert torch.equal(*after)


def test_too_many_epochs_are_refused_before_training():
    plugin = HybridMagnitudePlugin("decay", head_epochs=2)
    strategy = make_strategy(make_model(), [plugin], train_epochs=2)
    message = "^head_epochs=2 must be fewer than the epochs of training, got train_epochs=2$"
    with pytest.raises(ValueError, match=message):
        strategy.train(domain_stream().train_stream[0])
    online = split_online_stream(
        domain_stream().train_stream, experience_size=8, access_task_boundaries=False
    )
    plugin = HybridMagnitudePlugin("decay", head_epochs=1, decide_every=2)
    with pytest.raises(ValueError, match=r"^head_epochs=1 are epochs at the start of a task"):
        make_strategy(make_model(), [plugin], train_epochs=2).train(next(iter(online)))
    with pytest.raises(ValueError, match=r"^head_epochs must be a whole number >= 0"):
        HybridMagnitudePlugin(head_epochs=-1)
    with pytest.raises(ValueError, match=r"head_epochs must be a whole number >= 0"):
        METHODS["decay"].check({"head_epochs": 0.5}, 3)
