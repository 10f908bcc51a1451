"""The head that tasks' gradients are compared behind: the model's own, or a fitted one."""

import copy
import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from tiny import (
    N_CLASSES,
    N_FEATURES,
    SETTINGS,
    Call,
    Heads,
    assert_equal_states,
    class_stream,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    tiny_data,
    train,
)
from torch import nn
from torch.nn import functional
from torch.optim import AdamW

from avalanche_mgem import HybridMagnitudePlugin
from avalanche_mgem.restriction.ridge_head import fit_ridge_head
from avalanche_mgem.restriction.similarity import cosine
from avalanche_mgem.streams import split_stream


class Listed(nn.Module):
    """A shared layer and a list of heads, of which one is used."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(N_FEATURES, 8)
        self.classifier = nn.ModuleList([nn.Linear(8, N_CLASSES) for _ in range(3)])
        self.task = 0

    def forward(self, x):
        return self.classifier[self.task](torch.relu(self.features(x)))


class Pixels(nn.Module):
    """Its head is given no features [N, D]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv1d(1, 4, 3, padding=1)
        self.classifier = nn.Conv1d(4, N_CLASSES, 1)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x[:, None]))).mean(-1)


def behind_of(model, stream, plugins=(), **arguments):
    """Which head the decisions were behind."""
    plugin = HybridMagnitudePlugin(seed=0, **arguments)
    train(make_strategy(model, [*plugins, plugin]), stream)
    return plugin.last_decision.probe_head


@pytest.mark.parametrize(
    ("model", "stream", "expected"),
    [
        (lambda: make_model("a head a task"), lambda: class_stream(task_labels=True), "ridge"),
        (lambda: make_model("growing head"), class_stream, "ridge"),
        (Listed, domain_stream, "ridge"),
        (make_model, domain_stream, "own"),
        (make_model, class_stream, "own"),
        (Pixels, domain_stream, "own"),
    ],
)
def test_auto_fits_a_head_where_tasks_have_new_ones(model, stream, expected):
    torch.manual_seed(7)
    assert behind_of(model(), stream().train_stream) == expected


def test_with_one_class_a_task_nothing_is_compared_and_everything_trains():
    stream = split_stream(tiny_data(), n_experiences=6, seed=0)  # a class each
    plugin = HybridMagnitudePlugin(low=1, seed=0)
    train(make_strategy(make_model("growing head"), [plugin]), stream.train_stream)
    decision = plugin.last_decision
    assert (decision.similarity, decision.trained) == (None, decision.modules)


def test_each_can_be_asked_for():
    stream = class_stream(task_labels=True).train_stream
    assert behind_of(make_model("a head a task"), stream, probe_head="own") == "own"
    assert behind_of(make_model(), domain_stream().train_stream, probe_head="ridge") == "ridge"


def test_the_similarity_is_the_cosine_behind_fitted_heads_of_the_whole_data():
    """A slow reference: both gradients of all samples at once, each behind its own task's head."""
    torch.manual_seed(7)
    model = Heads()
    stream = class_stream(task_labels=True).train_stream

    def gradient(experience):
        x, y = (torch.stack([torch.as_tensor(s[i]) for s in experience.dataset]) for i in (0, 1))
        z = torch.relu(model.features(x))
        head = fit_ridge_head(z, y)
        weight, columns = head.weight.double(), torch.searchsorted(head.classes, y)
        logits = (z.double() - head.mean.double()) @ weight
        loss = functional.cross_entropy(logits, columns)
        own = torch.autograd.grad(loss, [model.features.weight, model.features.bias])
        return torch.cat([g.flatten() for g in own])

    plugin = HybridMagnitudePlugin(low=0, seed=0)
    strategy = make_strategy(model, [plugin])
    strategy.train(stream[0])
    earlier, now = gradient(stream[0]), gradient(stream[1])
    strategy.train(stream[1])
    assert plugin.last_decision.similarity == pytest.approx(cosine(now, earlier), abs=1e-5)


@pytest.mark.parametrize("setting", ["a head a task", "growing head", "batch norm", "dropout"])
def test_it_leaves_no_trace(setting):
    """Everything trains: what is measured behind a fitted head is all that is done, and undone."""
    runs = []
    for plugins in ([], [HybridMagnitudePlugin(probe_head="ridge", threshold=2.0, seed=0)]):
        states = []
        look = Call(
            after_training_exp=lambda s, t=states: t.append(
                (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
            )
        )
        strategy = make_strategy(
            make_model(setting), [*plugins, look], optimizer=lambda m: AdamW(m.parameters(), lr=0.1)
        )
        train(strategy, SETTINGS[setting][1]().train_stream)
        assert all(not module._forward_pre_hooks for module in strategy.model.modules())
        runs.append((strategy.model.state_dict(), states))
    assert_equal_states(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_the_models_head_plays_no_part():
    stream = class_stream(task_labels=True).train_stream
    similarities = []
    for scale in (1.0, 30.0):
        model = make_model("a head a task")
        plugin = HybridMagnitudePlugin(seed=0, low=1)

        def other_head(strategy, scale=scale):
            for parameter in strategy.model.classifier.parameters():
                parameter.data *= scale

        still = Call(before_update=lambda s: s.optimizer.zero_grad())
        other = Call(before_training_epoch=other_head, after_training_epoch=other_head)
        train(make_strategy(model, [other, plugin, still]), stream[:2])
        similarities.append(plugin.last_decision.similarity)
    assert similarities[0] == pytest.approx(similarities[1], abs=1e-6)


def test_without_boundaries_and_from_the_start():
    online = split_online_stream(
        domain_stream().train_stream, experience_size=8, access_task_boundaries=False
    )
    assert behind_of(Listed(), list(online), decide_every=3) == "ridge"
    stream = class_stream(task_labels=True).train_stream
    assert behind_of(make_model("a head a task"), stream, reference="start") == "ridge"


@pytest.mark.parametrize(
    ("model", "criterion", "reason"),
    [
        (Pixels, nn.CrossEntropyLoss(), r"no head is given features \[N, D\] \(heads: classifier"),
        (make_model, lambda out, y: (out**2).mean(), "the targets are no classes"),
    ],
)
def test_what_does_not_classify_is_refused_before_training(model, criterion, reason):
    model = model()
    before = parameter_vector(model)
    strategy = make_strategy(model, [HybridMagnitudePlugin(probe_head="ridge")])
    strategy._criterion = criterion
    stream = domain_stream().train_stream
    if "targets" in reason:
        strategy._unpack_minibatch = lambda: strategy.mbatch.__setitem__(
            1, strategy.mbatch[1].float()
        )
    with pytest.raises(ValueError, match=f"^probe_head='ridge' cannot be: {reason}"):
        strategy.train(stream[0])
    assert torch.equal(before, parameter_vector(model))


def of_the_second_task(value):
    def write(strategy):
        if strategy.clock.train_exp_counter == 1:
            strategy.model.features.weight.data[0, 0] = value

    return Call(before_training_epoch=write)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_features_that_are_not_finite_are_named_or_skipped(on_nonfinite):
    plugin = HybridMagnitudePlugin(on_nonfinite=on_nonfinite)
    plugins = [of_the_second_task(torch.nan), plugin, of_the_second_task(0.1)]
    strategy = make_strategy(make_model("a head a task"), plugins)
    stream = class_stream(task_labels=True).train_stream[:2]
    if on_nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r"holds NaN or Inf in 'features\.weight'"):
            train(strategy, stream)
    else:
        train(strategy, stream)
        assert plugin.skipped_probes == 1
        assert plugin.last_decision.trained == plugin.last_decision.modules


def test_a_copy_goes_on_as_the_original():
    stream = class_stream(task_labels=True).train_stream
    plugin = HybridMagnitudePlugin(low=0, threshold=0.1)
    strategy = make_strategy(
        make_model("a head a task"), [plugin], optimizer=lambda m: AdamW(m.parameters(), lr=0.02)
    )
    train(strategy, stream[:2])
    other = copy.deepcopy(strategy)
    after = [parameter_vector(train(s, stream, first=2).model) for s in (strategy, other)]
    assert torch.equal(*after)


def test_a_plugin_of_an_older_checkpoint_goes_on_behind_the_models_head():
    plugin = HybridMagnitudePlugin(seed=0)
    strategy = make_strategy(make_model("a head a task"), [plugin])
    plugin.__dict__.pop("probe_head")
    plugin.__dict__.pop("_behind")
    train(strategy, class_stream(task_labels=True).train_stream)
    assert plugin.last_decision.probe_head == "own"
