"""MIGU: what it must be equal to, what it holds still, and what it leaves alone."""

import copy
import pickle

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from tiny import (
    N_FEATURES,
    SETTINGS,
    Call,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.utils.checkpoint import checkpoint

from avalanche_mgem import MIGU, MIGUPlugin
from avalanche_mgem.model.layers import resolve_gated_layers

OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.2),
    "momentum and decay": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda m: Adam(m.parameters(), lr=0.02),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
    "rmsprop": lambda m: RMSprop(m.parameters(), lr=0.01, momentum=0.5),
}
SCORES = ["output", "gradient", "weight", "random"]
FREEZES = ["gradient", "update"]
PEERS = {
    "alone": list,
    "replay": lambda: [ReplayPlugin(12)],
    "ewc": lambda: [EWCPlugin(1.0)],
    "lwf": lambda: [LwFPlugin()],
}


def deep():
    """Three gated layers, two of them of one width."""
    torch.manual_seed(7)
    layers = [nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 6))


def trained(plugins, setting="single head", optimizer="adamw", n_experiences=3):
    strategy = make_strategy(
        make_model(setting), plugins, optimizer=OPTIMIZERS[optimizer], train_epochs=2
    )
    train(strategy, SETTINGS[setting][1]().train_stream[:n_experiences])
    return parameter_vector(strategy.model)


@pytest.mark.cover
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("freeze", FREEZES)
def test_with_nothing_masked_it_is_naive_to_the_bit(freeze, peer, setting):
    turn = list(SETTINGS).index(setting)
    score, optimizer = SCORES[turn % len(SCORES)], list(OPTIMIZERS)[turn % len(OPTIMIZERS)]
    plugin = MIGUPlugin(0.0, score=score, freeze=freeze, skip_tasks=0)
    ours = trained([*PEERS[peer](), plugin], setting, optimizer)
    assert torch.equal(ours, trained(PEERS[peer](), setting, optimizer))
    assert all(bool(kept.all()) for kept in plugin.last_mask.values())


@pytest.mark.cover
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("skip_tasks", [1, 2])
def test_the_first_tasks_train_freely(setting, skip_tasks):
    plugin = MIGUPlugin(0.6, skip_tasks=skip_tasks, ungated="freeze", freeze="update")
    ours = trained([plugin], setting, n_experiences=skip_tasks)
    assert torch.equal(ours, trained([], setting, n_experiences=skip_tasks))
    assert plugin.last_mask is None
    assert plugin.last_scores  # they are shown from the first iteration on
    plugin = MIGUPlugin(0.6, skip_tasks=skip_tasks)
    assert not torch.equal(trained([plugin], setting), trained([], setting))


class Watch:
    """Compares every parameter, and its optimiser's state, before and after each step."""

    def __init__(self, plugin):
        self.plugin, self.seen = plugin, []

    def plugins(self):
        return [Call(before_update=self.remember), self.plugin, Call(after_update=self.compare)]

    @staticmethod
    def tensors(strategy):
        for name, parameter in strategy.model.named_parameters():
            state = strategy.optimizer.state.get(parameter, {})
            rows = {k: v for k, v in state.items() if torch.is_tensor(v) and v.ndim}
            yield name, [parameter.detach(), *rows.values()]

    def remember(self, strategy):
        self.before = {n: [t.clone() for t in tensors] for n, tensors in self.tensors(strategy)}

    def compare(self, strategy):
        if self.plugin.last_mask is None:
            return
        after = dict(self.tensors(strategy))
        gated = resolve_gated_layers(strategy.model, self.plugin.last_mask)
        names = {id(p): n for n, p in strategy.model.named_parameters()}
        for layer in gated:
            kept = self.plugin.last_mask[layer.name]
            for rows in layer.rows:
                pairs = list(
                    zip(
                        self.before[names[id(rows.parameter)]],
                        after[names[id(rows.parameter)]],
                        strict=False,
                    )
                )
                pairs = [(rows.of(a), rows.of(b)) for a, b in pairs]
                still = all(torch.equal(a[~kept], b[~kept]) for a, b in pairs)
                moved = not torch.equal(pairs[0][0][kept], pairs[0][1][kept])
                self.seen.append((int((~kept).sum()), still, moved))


def watched(plugin, optimizer, model=None):
    watch = Watch(plugin)
    strategy = make_strategy(
        model or deep(), watch.plugins(), optimizer=OPTIMIZERS[optimizer], train_epochs=2
    )
    train(strategy, domain_stream().train_stream)
    assert len(watch.seen) >= 30
    return watch.seen


@pytest.mark.cover
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("score", SCORES)
def test_update_holds_masked_rows_still_to_the_bit(score, optimizer):
    seen = watched(MIGUPlugin(0.7, score=score, freeze="update", seed=0), optimizer)
    assert all(still for _, still, _ in seen)
    assert {count for count, _, _ in seen} == {3, 5}  # floor(0.7 * 5), floor(0.7 * 8)
    assert sum(moved for _, _, moved in seen) > len(seen) / 2


def test_gradient_holds_masked_rows_still_under_plain_sgd_only():
    assert all(still for _, still, _ in watched(MIGUPlugin(0.7), "sgd"))
    assert not all(still for _, still, _ in watched(MIGUPlugin(0.7), "adamw"))


@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_ungated_may_be_frozen_after_the_first_task(optimizer, freeze):
    model = deep()
    plugin = MIGUPlugin(0.5, ungated="freeze", freeze=freeze, target_modules=["0"])
    strategy = make_strategy(model, [plugin], optimizer=OPTIMIZERS[optimizer])
    stream = domain_stream().train_stream
    strategy.train(stream[0])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(strategy, stream, first=1)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"0.weight", "7.weight", "7.bias"}  # the gated rows and the head


def test_masks_are_the_smallest_magnitudes_of_the_minibatch():
    """A separate forward for each layer, rows sorted one by one."""
    plugin, seen = MIGUPlugin(0.6, skip_tasks=0), []

    def compare(strategy):
        model, x = strategy.model, strategy.mb_x
        for name, depth in (("0", 1), ("2", 3), ("5", 6)):
            with torch.no_grad():
                size = reference["model"][:depth](x).abs().mean(0).tolist()
            masked = sorted(range(len(size)), key=lambda i: (size[i], -i))[: int(0.6 * len(size))]
            kept = [i not in masked for i in range(len(size))]
            seen.append(kept == plugin.last_mask[name].tolist())
        assert len(model) == 8

    reference = {}
    remember = Call(before_forward=lambda s: reference.update(model=copy.deepcopy(s.model)))
    strategy = make_strategy(deep(), [remember, plugin, Call(after_update=compare)])
    train(strategy, domain_stream().train_stream)
    assert len(seen) == 27
    assert all(seen)


def test_convolutions_are_gated_by_channel():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 7, 2), nn.Flatten(), nn.Linear(14, 6)
    )
    plugin = MIGUPlugin(0.5, freeze="update")
    assert all(still for _, still, _ in watched_rows(plugin, model))
    assert plugin.last_mask["1"].shape == (7,)


def watched_rows(plugin, model):
    watch = Watch(plugin)
    train(
        make_strategy(model, watch.plugins(), optimizer=OPTIMIZERS["adamw"]),
        domain_stream().train_stream,
    )
    return watch.seen


def online(access):
    stream = domain_stream(n_experiences=2).train_stream
    return split_online_stream(stream, experience_size=8, access_task_boundaries=access)


def masked_from(plugin, access):
    """The number of the first iteration that masked something."""
    masked = []
    strategy = make_strategy(
        make_model(), [plugin, Call(after_update=lambda s: masked.append(plugin.last_mask))]
    )
    for experience in online(access):
        strategy.train(experience)
    return next((i for i, mask in enumerate(masked) if mask is not None), None)


def test_streams_without_boundaries_are_masked_from_a_step_on():
    assert masked_from(MIGUPlugin(0.5), access=False) == 0
    assert masked_from(MIGUPlugin(0.5, skip_steps=4, skip_tasks=0), access=False) == 4
    assert masked_from(MIGUPlugin(0.5), access=True) == 3  # each task is three minibatches
    assert masked_from(MIGUPlugin(0.5, skip_tasks=0), access=True) == 0
    assert masked_from(MIGUPlugin(0.5, skip_tasks=2), access=True) is None


class Accumulating(Naive):
    """Steps after every second minibatch, and says so to its plugins only then."""

    def training_epoch(self, **kwargs):
        for index, batch in enumerate(self.dataloader):
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            if index % 2 == 0:
                self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss += self.criterion() / 2
            self._before_backward(**kwargs)
            self.backward()
            self._after_backward(**kwargs)
            if index % 2 == 1:
                self._before_update(**kwargs)
                self.optimizer_step()
                self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)


@pytest.mark.parametrize("score", ["output", "gradient"])
def test_accumulated_gradients_have_the_scores_of_the_whole_minibatch(score):
    scores = []
    for strategy, size in ((Naive, 8), (Accumulating, 4)):
        plugin = MIGUPlugin(0.5, score=score, skip_tasks=0)
        made = make_strategy(deep(), [plugin], strategy=strategy, batch_size=size)
        stream = domain_stream().train_stream[0]
        torch.manual_seed(3)
        made.train(stream, shuffle=False)
        scores.append((plugin.last_scores, parameter_vector(made.model)))
    for name, whole in scores[0][0].items():
        torch.testing.assert_close(scores[1][0][name], whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores[0][1], scores[1][1], rtol=1e-4, atol=1e-6)


class Checkpointed(nn.Module):
    """Recomputes its first half in the backward pass."""

    def __init__(self, on):
        super().__init__()
        self.net, self.on = deep(), on

    def forward(self, x):
        first, rest = self.net[:4], self.net[4:]
        return rest(checkpoint(first, x, use_reentrant=False) if self.on else first(x))


def test_activation_checkpointing_changes_nothing():
    ends = []
    for on in (False, True):
        strategy = make_strategy(Checkpointed(on), [MIGUPlugin(0.5, freeze="update")])
        train(strategy, domain_stream().train_stream)
        ends.append(parameter_vector(strategy.model))
    assert torch.equal(*ends)


def hooks(model, optimizer):
    own = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    of_steps = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return sum(own) + sum(map(len, of_steps))


@pytest.mark.cover
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("peer", PEERS)
def test_no_hook_is_left_and_random_states_are_left_alone(peer, setting):
    turn = list(SETTINGS).index(setting)
    plugin = MIGUPlugin(0.5, freeze="update", score=SCORES[turn % len(SCORES)], seed=0)
    strategy = make_strategy(
        make_model(setting), [*PEERS[peer](), plugin], optimizer=OPTIMIZERS["adamw"]
    )
    states = []
    for experience in SETTINGS[setting][1]().train_stream:
        torch.manual_seed(5)
        strategy.train(experience)
        states.append(torch.get_rng_state())
        assert hooks(strategy.model, strategy.optimizer) == 0
    plain = make_strategy(make_model(setting), PEERS[peer](), optimizer=OPTIMIZERS["adamw"])
    for experience, state in zip(SETTINGS[setting][1]().train_stream, states, strict=True):
        torch.manual_seed(5)
        plain.train(experience)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
@pytest.mark.parametrize("score", SCORES)
def test_a_copy_goes_on_as_the_original(score, copied):
    stream = domain_stream().train_stream
    plugin = MIGUPlugin(0.5, freeze="update", score=score, seed=3)
    strategy = make_strategy(deep(), [plugin], optimizer=OPTIMIZERS["adamw"])
    train(strategy, stream[:2])
    second, model = copied(plugin), copy.deepcopy(strategy.model)
    again = make_strategy(model, [second], optimizer=OPTIMIZERS["adamw"])
    again.optimizer.load_state_dict(strategy.optimizer.state_dict())
    for each in (strategy, again):
        each.optimizer.state.clear()  # Avalanche's first make_optimizer does so with the second's
        torch.manual_seed(9)
        each.train(stream[2])
    assert torch.equal(parameter_vector(model), parameter_vector(strategy.model))


def test_random_masks_come_from_the_seed():
    ends = [trained([MIGUPlugin(0.5, score="random", seed=seed)]) for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_first_task_that_begins_again_is_still_the_first():
    plugin = MIGUPlugin(0.6)
    failing = Call(before_backward=lambda strategy: 1 / 0)
    strategy = make_strategy(deep(), [plugin, failing])
    task, second, *_ = domain_stream().train_stream
    with pytest.raises(ZeroDivisionError):
        strategy.train(task)
    strategy.plugins.remove(failing)
    strategy.train(task)
    assert plugin.last_mask is None
    strategy.train(second)
    assert plugin.last_mask is not None


def test_after_an_error_in_the_forward_pass_no_hook_is_left():
    def fail(strategy):
        raise RuntimeError("stop")

    model = deep()
    model.register_module("8", Failing())
    strategy = make_strategy(model, [MIGUPlugin(0.5, heads=["7"])])
    with pytest.raises(RuntimeError, match="stop"):
        strategy.train(domain_stream().train_stream[0])
    assert hooks(model, strategy.optimizer) == 0


class Failing(nn.Module):
    """A layer that cannot."""

    def forward(self, x):
        raise RuntimeError("stop")


def test_the_strategy_is_naive_with_the_plugin():
    stream = domain_stream().train_stream
    model = deep()
    strategy = MIGU(
        model=model,
        optimizer=OPTIMIZERS["adamw"](model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        mask_fraction=0.6,
        freeze="update",
    )
    other = make_strategy(deep(), [MIGUPlugin(0.6, freeze="update")], optimizer=OPTIMIZERS["adamw"])
    for each in (strategy, other):
        train(each, stream)
    assert torch.equal(parameter_vector(model), parameter_vector(other.model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_fraction": 1.0}, r"mask_fraction must be a number in \[0, 1\), got 1.0"),
        ({"mask_fraction": -0.1}, "mask_fraction must be a finite number >= 0"),
        ({"mask_fraction": "0.7"}, "mask_fraction must be a finite number"),
        ({"score": "outputs"}, "score: unknown 'outputs'; did you mean 'output'"),
        ({"freeze": "updates"}, "freeze: unknown 'updates'; did you mean 'update'"),
        ({"ungated": "frozen"}, "ungated: unknown 'frozen'"),
        ({"normalize": "tokens"}, "normalize: unknown 'tokens'; did you mean 'token'"),
        ({"ignore_padding": 1}, "ignore_padding must be True or False, got 1"),
        ({"fused": "part"}, "fused: unknown 'part'; did you mean 'parts'"),
        (
            {"fused": {"qkv": (4,)}},
            r"fused must be .* sizes of at least two parts, .*'qkv': \(4,\)",
        ),
        ({"fused": {"qkv": 12}}, "fused must be .* got 'qkv': 12"),
        ({"fused": {"qkv": (4, 0)}}, r"fused\['qkv'\] must be a whole number >= 1"),
        ({"skip_tasks": -1}, "skip_tasks must be a whole number >= 0"),
        ({"skip_steps": 0.5}, "skip_steps must be a whole number >= 0"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"target_modules": 3}, "target_modules must be None, a string or a list of names, got 3"),
        ({"heads": [0]}, "heads must be None, a string or a list of names"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MIGUPlugin(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": ["00"]}, "target_modules: '00' matches no layer"),
        ({"heads": ["head"]}, "heads: 'head' matches no module"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_said_before_training(arguments, message):
    model = deep()
    before = parameter_vector(model)
    strategy = make_strategy(model, [MIGUPlugin(**arguments)])
    with pytest.raises(ValueError, match=message):
        strategy.train(domain_stream().train_stream[0])
    assert torch.equal(before, parameter_vector(model))


def test_a_model_without_a_layer_to_gate_is_refused():
    model = nn.Sequential(nn.LayerNorm(N_FEATURES))
    strategy = make_strategy(model, [MIGUPlugin()])
    with pytest.raises(ValueError, match="model has no layer with rows to gate"):
        strategy.train(domain_stream().train_stream[0])


def test_a_score_that_is_no_number_is_said():
    model = deep()
    with torch.no_grad():
        model[2].weight[3, 0] = float("nan")
    strategy = make_strategy(model, [MIGUPlugin(0.5, skip_tasks=0)])
    with pytest.raises(FloatingPointError, match="the loss is NaN or Inf"):
        strategy.train(domain_stream().train_stream[0])
