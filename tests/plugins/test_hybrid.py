"""The hybrid strategy: what it must be equal to, what stands still, and what it leaves alone."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import IncrementalClassifier
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
from torch.nn.utils import parametrizations, spectral_norm
from torch.optim import SGD, Adam, AdamW, RMSprop

from avalanche_mgem import HybridMagnitude, HybridMagnitudePlugin
from avalanche_mgem.model.blocks import find_blocks
from avalanche_mgem.restriction.similarity import cosine

OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.2),
    "momentum and decay": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda m: Adam(m.parameters(), lr=0.02),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
    "rmsprop": lambda m: RMSprop(m.parameters(), lr=0.01, momentum=0.5),
}


def deep(head=None):
    """Three layers with batch norm, and a head."""
    torch.manual_seed(7)
    layers = []
    for width in (N_FEATURES, 8, 8):
        layers += [nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.1), head or nn.Linear(8, N_CLASSES))


def trained(plugins, setting="single head", optimizer="adamw"):
    strategy = make_strategy(
        make_model(setting), plugins, optimizer=OPTIMIZERS[optimizer], train_epochs=2
    )
    train(strategy, SETTINGS[setting][1]().train_stream)
    return strategy.model.state_dict()


ALL_TRAIN = {
    "initialized": {"mode": "initialized"},
    "all": {"threshold": 2.0},
    "all from the start": {"threshold": 2.0, "reference": "start", "granularity": "module"},
}


@pytest.mark.cover
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("arguments", ALL_TRAIN)
def test_with_all_modules_it_is_naive_to_the_bit(arguments, setting):
    turn = list(SETTINGS).index(setting) + list(ALL_TRAIN).index(arguments)
    optimizer = list(OPTIMIZERS)[turn % len(OPTIMIZERS)]
    plugin = HybridMagnitudePlugin(**ALL_TRAIN[arguments], seed=3)
    ours = trained([plugin], setting, optimizer)
    assert_equal_states(ours, trained([], setting, optimizer))
    decision = plugin.last_decision
    assert decision.trained == decision.modules
    assert (decision.similarity is None) == (arguments == "initialized")


class Watch:
    """Compares all that a strategy has of each module before and after each experience."""

    def __init__(self, plugin):
        self.plugin, self.seen = plugin, []

    def plugins(self):
        # The first event of an experience and the last one, so before and after every plugin's.
        start = Call(before_train_dataset_adaptation=self.remember)
        return [start, self.plugin, Call(after_training_exp=self.compare)]

    @staticmethod
    def tensors(strategy):
        found = {}
        for name, parameter in strategy.model.named_parameters():
            found[name] = parameter.detach()
            for key, value in strategy.optimizer.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = torch.as_tensor(value)
        return {n: t.clone() for n, t in [*found.items(), *strategy.model.named_buffers()]}

    def remember(self, strategy):
        self.before = self.tensors(strategy)

    def compare(self, strategy):
        decision, after = self.plugin.last_decision, self.tensors(strategy)
        blocks = find_blocks(strategy.model)
        for module in blocks.names:
            names = [*blocks.parameters[module], *blocks.statistics[module]]
            own = [
                n for n in after if any(n == m or n.startswith((f"{m}/", f"{m}.")) for m in names)
            ]
            same = [n in self.before and torch.equal(after[n], self.before[n]) for n in own]
            self.seen.append((module in decision.trained, all(same), any(same)))


@pytest.mark.cover
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("low", [0, 1, 2])
def test_what_is_frozen_stays_the_same_to_the_bit(low, optimizer):
    watch = Watch(HybridMagnitudePlugin("frozen", low=low))
    strategy = make_strategy(
        deep(), watch.plugins(), optimizer=OPTIMIZERS[optimizer], train_epochs=2, eval_every=1
    )
    train(strategy, domain_stream().train_stream)
    assert [t for t, _, _ in watch.seen] == [True] * 3 + 2 * ([True] * low + [False] * (3 - low))
    for is_trained, all_same, any_same in watch.seen:
        assert all_same if not is_trained else not any_same


class Restless(Call):
    """A plugin that calls model.train() and sends data through, as GEM's does."""

    @staticmethod
    def disturb(strategy):
        strategy.model.train()
        strategy.model(torch.randn(4, N_FEATURES))

    def __init__(self):
        super().__init__(before_training_iteration=self.disturb, before_update=self.disturb)


@pytest.mark.parametrize("first", [True, False])
def test_statistics_stand_whoever_calls_train(first):
    watch = Watch(HybridMagnitudePlugin("frozen", low=1))
    plugins = [Restless(), *watch.plugins()] if first else [*watch.plugins()[:2], Restless()]
    plugins += [] if first else watch.plugins()[2:]
    train(make_strategy(deep(), plugins), domain_stream().train_stream)
    assert all(same for is_trained, same, _ in watch.seen if not is_trained)
    assert sum(not is_trained for is_trained, _, _ in watch.seen) == 4


def test_frozen_norms_use_their_running_statistics_and_dropout_goes_on():
    modes = []
    look = Call(after_forward=lambda s: modes.append([m.training for m in s.model]))
    strategy = make_strategy(deep(), [look, HybridMagnitudePlugin("frozen", low=1)])
    train(strategy, domain_stream(2).train_stream)
    assert modes[0] == [True] * 11
    expected = [True] * 11
    expected[1] = expected[4] = False
    assert modes[-1] == expected
    assert all(m.training for m in strategy.model)


def test_what_required_no_gradient_before_is_left_to_others():
    model = deep()
    model[3].requires_grad_(False)
    model[1].eval()
    needs = [p.requires_grad for p in model.parameters()]
    strategy = make_strategy(model, [HybridMagnitudePlugin("frozen", low=1)])
    train(strategy, domain_stream(2).train_stream)
    assert [p.requires_grad for p in model.parameters()] == needs


def test_an_interrupted_training_is_thawed_by_the_next_or_by_hand():
    def fail(strategy):
        if strategy.clock.train_exp_counter == 1:
            raise RuntimeError("stop")

    plugin = HybridMagnitudePlugin("frozen", low=0)
    stop = Call(before_backward=fail)
    strategy = make_strategy(deep(), [plugin, stop])
    stream = domain_stream().train_stream
    with pytest.raises(RuntimeError, match="stop"):
        train(strategy, stream)
    assert not strategy.model[0].weight.requires_grad
    second, model = copy.deepcopy(plugin), copy.deepcopy(strategy.model)
    second.thaw(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model)
    strategy.plugins.remove(stop)
    loaded = torch.full((8,), 5.0)
    strategy.model[1].running_mean.copy_(loaded)  # as a checkpoint that is loaded in between
    strategy.train(stream[1])
    assert all(p.requires_grad for p in strategy.model.parameters())
    assert torch.equal(strategy.model[1].running_mean, loaded)
    assert all(m.training for m in strategy.model)


class Interrupting(Call):
    """Raises an error in the third iteration of a task, once."""

    def __init__(self, task):
        super().__init__(after_training_iteration=self.interrupt)
        self.task = task

    def interrupt(self, strategy):
        if strategy.clock.train_exp_counter == self.task and strategy.clock.train_exp_iterations:
            self.task = None
            raise RuntimeError("stop")


@pytest.mark.cover
@pytest.mark.parametrize("reference", ["end", "start"])
@pytest.mark.parametrize("mode", ["adaptive", "frozen"])
@pytest.mark.parametrize("task", [0, 1, 2])
def test_a_task_that_was_interrupted_is_decided_alike_when_trained_again(mode, reference, task):
    """Each task is compared with the one before it, never with itself and never with nothing."""
    decisions = []
    for interrupted in (None, task):
        plugin, found = HybridMagnitudePlugin(mode, reference=reference, metric=first_rows), []
        strategy = make_strategy(deep(), [plugin, Interrupting(interrupted)])
        for experience in domain_stream().train_stream:
            try:
                strategy.train(experience)
            except RuntimeError:
                strategy.train(experience)
            found.append(plugin.last_decision)
        decisions.append(found)
    for one, other in zip(*decisions, strict=True):
        assert (one.similarity is None) == (other.similarity is None)
        assert one.trained == other.trained
    assert decisions[1][0].trained == ("6", "3", "0")
    assert (decisions[1][task].similarity is None) == (task == 0 or mode == "frozen")


def first_rows(one, other):
    """As unlike as can be, unless both are one."""
    return 1.0 if torch.equal(one, other) else -1.0


def test_a_second_strategy_begins_anew_and_its_model_is_nobody_elses():
    stream = domain_stream().train_stream
    plugin = HybridMagnitudePlugin("frozen", low=0)
    first = make_strategy(deep(), [plugin, Interrupting(1)])
    with pytest.raises(RuntimeError, match="stop"):
        train(first, stream)
    model = deep()
    model[3].requires_grad_(False)  # by the user, and frozen in the first model by the plugin
    second = make_strategy(model, [plugin])
    second.train(stream[0])
    assert all(p.requires_grad for p in first.model.parameters())
    assert not model[3].weight.requires_grad
    assert plugin.last_decision.trained == plugin.last_decision.modules == ("6", "0")
    second.train(stream[1])
    assert plugin.last_decision.trained == ()


def test_a_model_that_is_replaced_within_a_strategy_is_no_new_beginning():
    plugin = HybridMagnitudePlugin("frozen", low=0)
    replace = Call(before_train_dataset_adaptation=lambda s: setattr(s, "model", deep()))
    strategy = make_strategy(deep(), [replace, plugin])  # as GDumb does
    train(strategy, domain_stream().train_stream)
    assert plugin.last_decision.trained == ()


def test_an_epoch_that_an_error_ends_before_it_begins_leaves_no_plugin():
    def stop(strategy):
        raise KeyboardInterrupt

    plugins = [HybridMagnitudePlugin("frozen"), Call(before_training_epoch=stop)]
    strategy = make_strategy(deep(), plugins)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(domain_stream().train_stream[0])
    strategy.plugins.remove(plugins[1])
    expected = [*strategy.plugins[:-1]]
    strategy.train(domain_stream().train_stream[0])
    assert strategy.plugins == expected


def test_modules_are_the_plugins_own():
    given = {"top": ["6"], "bottom": ["0", "3"]}
    plugin = HybridMagnitudePlugin("frozen", modules=given)
    given["top"].append("3")
    given.clear()
    train(make_strategy(deep(), [plugin]), domain_stream(2).train_stream)
    assert plugin.last_decision.modules == ("top", "bottom", "rest")


@pytest.mark.parametrize("normalised", [spectral_norm, parametrizations.spectral_norm])
def test_singular_vectors_of_frozen_layers_stand(normalised):
    torch.manual_seed(7)
    layers = [normalised(nn.Linear(N_FEATURES, 8)), nn.ReLU(), nn.Linear(8, N_CLASSES)]
    strategy = make_strategy(nn.Sequential(*layers), [HybridMagnitudePlugin("frozen", low=0)])
    states = []
    for experience in domain_stream().train_stream:
        strategy.train(experience)
        states.append({n: t.clone() for n, t in strategy.model.state_dict().items()})
    moved = {n for n, t in states[0].items() if not torch.equal(t, states[2][n])}
    assert moved == {"2.weight", "2.bias"}
    assert sum(n.endswith(("_u", "_v")) for n in states[0]) == 2
    assert all(m.training for m in strategy.model.modules())


def collected(decisions, plugin):
    return Call(before_training_iteration=lambda s: decisions.append(plugin.last_decision))


@pytest.mark.parametrize("reference", ["end", "start"])
def test_the_similarity_is_the_cosine_of_two_gradients_of_the_whole_data(reference):
    """A slow reference: the gradients of all samples at once, parameter by parameter."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))
    stream = domain_stream(2).train_stream

    def gradients(experience):
        x, y = (torch.stack([torch.as_tensor(s[i]) for s in experience.dataset]) for i in (0, 1))
        loss = nn.CrossEntropyLoss()(model(x), y)
        return torch.autograd.grad(loss, [model[i].weight for i in (2, 0)])

    plugin = HybridMagnitudePlugin(
        reference=reference, probe_batches=99, modules=modules_of_weights
    )
    strategy = make_strategy(model, [plugin], optimizer=OPTIMIZERS["sgd"])
    earlier = gradients(stream[0])
    strategy.train(stream[0])
    if reference == "end":
        earlier = gradients(stream[0])
    now = gradients(stream[1])
    strategy.train(stream[1])
    decision = plugin.last_decision
    flat = [torch.cat([g.flatten() for g in each]) for each in (now, earlier)]
    assert decision.similarity == pytest.approx(cosine(*flat), abs=1e-5)
    for name, a, b in zip(("top", "bottom"), now, earlier, strict=True):
        expected = cosine(a.flatten(), b.flatten())
        assert decision.module_similarities[name] == pytest.approx(expected, abs=1e-5)


def modules_of_weights(model):
    model[0].bias.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return {"top": ["2.weight"], "bottom": ["0.weight"]}


def constant(value):
    return lambda one, other: value


@pytest.mark.parametrize(
    ("arguments", "n_trained"),
    [
        ({"metric": constant(-0.1)}, 3),
        ({"metric": constant(0.0)}, 1),
        ({"metric": constant(0.0), "low": 0}, 0),
        ({"metric": constant(-0.1), "high": 2}, 2),
        ({"metric": constant(0.3), "threshold": 0.4, "high": 2}, 2),
        ({"metric": constant(0.0), "schedule": "graded"}, 2),
        ({"metric": constant(1.0), "schedule": "graded"}, 1),
        ({"metric": constant(0.1), "granularity": "module"}, 1),
        ({"metric": constant(-0.1), "granularity": "module", "high": 2}, 2),
        ({"mode": "frozen", "low": 2}, 2),
        ({"mode": "initialized"}, 3),
    ],
)
def test_how_many_modules_train(arguments, n_trained):
    plugin = HybridMagnitudePlugin(**arguments)
    decisions = []
    strategy = make_strategy(deep(), [plugin, collected(decisions, plugin)])
    train(strategy, domain_stream(2).train_stream)
    first, last = decisions[0], decisions[-1]
    assert first.trained == first.modules == last.modules == ("6", "3", "0")
    assert last.trained == ("6", "3", "0")[:n_trained]
    assert len({id(d) for d in decisions}) == 2


def test_decisions_come_from_the_seed_and_leave_the_random_states_alone():
    runs = []
    for seed in (1, 1, 2, None):
        plugin = HybridMagnitudePlugin(probe_batches=1, seed=seed)
        decisions, states = [], []
        look = Call(
            before_training_iteration=lambda s, d=decisions, p=plugin: d.append(p.last_decision),
            after_training_exp=lambda s, t=states: t.append(
                (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
            ),
        )
        train(make_strategy(deep(), [plugin, look]), domain_stream().train_stream)
        runs.append(([d.similarity for d in decisions], states))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    naive = []
    look = Call(after_training_exp=lambda s: naive.append(torch.get_rng_state().tolist()))
    train(make_strategy(deep(), [look]), domain_stream().train_stream)
    for _, states in runs:
        assert [torch_state for torch_state, _, _ in states] == naive


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_as_the_original(copied):
    stream = domain_stream().train_stream
    plugin = HybridMagnitudePlugin(probe_batches=2, granularity="module", seed=5)
    strategy = make_strategy(deep(), [plugin], optimizer=OPTIMIZERS["adamw"])
    train(strategy, stream[:2])
    second, model = copied(plugin), copy.deepcopy(strategy.model)
    again = make_strategy(model, [second], optimizer=OPTIMIZERS["adamw"])
    for each in (strategy, again):
        each.optimizer.state.clear()  # Avalanche's first make_optimizer does so with the second's
        torch.manual_seed(9)
        each.train(stream[2])
    assert_equal_states(strategy.model.state_dict(), model.state_dict())
    assert second.last_decision == plugin.last_decision


@pytest.mark.parametrize("growing", [True, False])
def test_heads_that_grow_or_come_always_train(growing):
    model = deep(IncrementalClassifier(8, 2)) if growing else make_model("a head a task")
    plugin = HybridMagnitudePlugin("frozen", low=0)
    strategy = make_strategy(model, [plugin], optimizer=OPTIMIZERS["adamw"])
    before = []
    for index, experience in enumerate(class_stream(task_labels=not growing).train_stream):
        strategy.train(experience)
        shared = [p for n, p in model.named_parameters() if "classifier" not in n]
        before.append(torch.cat([p.detach().flatten() for p in shared]).clone())
        name = "classifier.weight" if growing else f"{index}.classifier.weight"
        head = next(p for n, p in model.named_parameters() if n.endswith(name))
        assert head.grad is not None
        assert all(p.grad is None for p in shared) == (index > 0)
    assert torch.equal(before[0], before[2])


def online(access, size=8):
    stream = domain_stream(n_experiences=3).train_stream
    return list(split_online_stream(stream, experience_size=size, access_task_boundaries=access))


@pytest.mark.parametrize("reference", ["end", "start"])
@pytest.mark.parametrize("size", [8, 7])
def test_online_streams_are_decided_at_task_boundaries(size, reference):
    plugin, decisions = HybridMagnitudePlugin(reference=reference, threshold=-2.0), []
    watch = Watch(plugin)
    plugins = [*watch.plugins(), collected(decisions, plugin)]
    strategy = make_strategy(deep(), plugins, optimizer=OPTIMIZERS["adamw"])
    for experience in online(access=True, size=size):
        strategy.train(experience)
    distinct = list(dict.fromkeys(map(id, decisions)))
    assert len(distinct) == 3
    assert [distinct.index(id(d)) for d in decisions] == sorted([0, 1, 2] * (len(decisions) // 3))
    assert decisions[-1].similarity is not None
    assert all(same for is_trained, same, _ in watch.seen if not is_trained)
    assert sum(not is_trained for is_trained, _, _ in watch.seen) > 6


@pytest.mark.parametrize(("epochs", "every", "size"), [(1, 2, 8), (2, 3, 24), (1, 1, 16)])
def test_streams_without_boundaries_are_decided_every_few_iterations(epochs, every, size):
    plugin, decisions = HybridMagnitudePlugin(decide_every=every, threshold=-2.0), []
    strategy = make_strategy(deep(), [plugin, collected(decisions, plugin)], train_epochs=epochs)
    for experience in online(access=False, size=size):
        strategy.train(experience)
    distinct = list(dict.fromkeys(map(id, decisions)))
    assert [distinct.index(id(d)) for d in decisions] == [i // every for i in range(9 * epochs)]
    assert decisions[0].trained == ("6", "3", "0")
    assert decisions[0].similarity is None
    assert {d.trained for d in decisions[every:]} == {("6",)}
    assert all(d.similarity is not None for d in decisions[every:])


@pytest.mark.parametrize("mode", ["adaptive", "frozen"])
def test_streams_without_boundaries_need_decide_every(mode):
    strategy = make_strategy(deep(), [HybridMagnitudePlugin(mode)])
    with pytest.raises(ValueError, match="decide_every must be a number of iterations"):
        strategy.train(online(access=False)[0])
    make_strategy(deep(), [HybridMagnitudePlugin("initialized")]).train(online(access=False)[0])


def test_the_strategy_is_naive_with_the_plugin():
    stream, model = domain_stream().train_stream, deep()
    strategy = HybridMagnitude(
        model=model,
        optimizer=OPTIMIZERS["adamw"](model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        mode="frozen",
        low=2,
    )
    other = make_strategy(
        deep(), [HybridMagnitudePlugin("frozen", low=2)], optimizer=OPTIMIZERS["adamw"]
    )
    for each in (strategy, other):
        train(each, stream)
    assert torch.equal(parameter_vector(model), parameter_vector(other.model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "adaptative"}, "mode: unknown 'adaptative'; did you mean 'adaptive'"),
        ({"threshold": float("nan")}, "threshold must be a finite number, got nan"),
        ({"low": -1}, "low must be a whole number >= 0, got -1"),
        ({"high": 0, "low": 0}, "high must be a whole number >= 1, got 0"),
        ({"low": 3, "high": 2}, "high must be >= low, got low=3 and high=2"),
        ({"schedule": "soft"}, "schedule: unknown 'soft'"),
        ({"granularity": "modules"}, "granularity: unknown 'modules'; did you mean 'module'"),
        (
            {"granularity": "module", "schedule": "graded"},
            "schedule='graded' needs granularity='model'",
        ),
        ({"modules": "layer4"}, "modules must be None, a list .*got 'layer4'"),
        ({"heads": [0]}, "heads must be None, a string or a list of names"),
        ({"metric": "cos"}, "metric: unknown 'cos'"),
        ({"reference": "begin"}, "reference: unknown 'begin'"),
        ({"probe_batches": 0}, "probe_batches must be a whole number >= 1"),
        ({"decide_every": 0}, "decide_every must be a whole number >= 1"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        HybridMagnitudePlugin(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": ["6", "33"]}, "modules: '33' matches no submodule .*did you mean '3'"),
        ({"heads": ["head"]}, "heads: 'head' matches no module"),
        ({"low": 4}, "low=4 is more than the model has modules, which are 3: 6, 3, 0"),
        ({"high": 4}, "high=4 is more than the model has modules, which are 3"),
        ({"low": 0, "heads": ()}, "low=0 trains the output heads alone, and the model has none"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_training(arguments, message):
    model = deep()
    before = parameter_vector(model)
    strategy = make_strategy(model, [HybridMagnitudePlugin(**arguments)])
    with pytest.raises(ValueError, match=message):
        strategy.train(domain_stream().train_stream[0])
    assert torch.equal(before, parameter_vector(model))
