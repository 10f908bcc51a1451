"""What a strategy does around its forward pass is done to measured batches, or is refused."""

import copy

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models import SCRModel
from avalanche.training.losses import ICaRLLossPlugin, MaskedCrossEntropy
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import (
    DER,
    ER_ACE,
    ER_AML,
    SCR,
    CoPE,
    FeatureReplay,
    GSS_greedy,
    ICaRL,
    Naive,
)
from tiny import Call, class_stream, domain_stream, make_model, make_strategy, train
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin
from avalanche_mgem.bridge.accumulation import with_gradient_accumulation
from avalanche_mgem.bridge.batches import batch_loss, write_batch_gradient
from avalanche_mgem.bridge.forward import acts_around_forward
from avalanche_mgem.bridge.precision import with_mixed_precision


class Compare(SupervisedPlugin):
    """Measures each minibatch before its iteration, and compares with the strategy's gradient.

    Args:
        when: in which iterations of the run the two must be the same.
    """

    def __init__(self, when=lambda strategy: True):
        super().__init__()
        self.when, self.compared = when, 0

    def before_training_iteration(self, strategy, **kwargs):
        self.batch = list(strategy.mbatch)
        parameters = list(strategy.model.parameters())
        self.row = torch.zeros(sum(p.numel() for p in parameters))
        attributes = dict(vars(strategy))
        write_batch_gradient(strategy, self.batch, parameters, self.row)
        assert vars(strategy).keys() == attributes.keys()
        assert all(vars(strategy)[name] is value for name, value in attributes.items())

    def after_backward(self, strategy, **kwargs):
        if self.when(strategy):
            parameters = list(strategy.model.parameters())
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            own = torch.cat([part.flatten() for part in own])
            assert own.norm() > 0
            torch.testing.assert_close(self.row, own, rtol=1e-4, atol=1e-6)
            self.compared += 1


def options(model, plugins, lr=0.05):
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "plugins": list(plugins),
        "train_mb_size": 8,
        "evaluator": EvaluationPlugin(),
    }


def encoder():
    torch.manual_seed(7)
    features = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    return SCRModel(features, nn.Linear(8, 5))


class Flip(nn.Module):
    """An augmentation that draws nothing."""

    def forward(self, x):
        return x.flip(1)


def scr(plugins, kind=SCR, **more):
    return kind(**options(encoder(), plugins), augmentations=Flip(), mem_size=12, **more)


def first_task(strategy):
    return strategy.clock.train_exp_counter == 0


def test_scr_in_its_first_task():
    compare = Compare(first_task)
    train(scr([compare]), class_stream().train_stream[:2])
    assert compare.compared == 3


def test_scr_by_formula():
    """The two views of each sample, and the loss between them."""
    strategy = scr([])
    experience = class_stream().train_stream[0]
    strategy.train(experience)
    strategy.experience, strategy.is_training = experience, True
    samples = [experience.dataset[i] for i in range(5)]
    x, y, task_labels = experience.dataset.collate_fn(samples)
    outputs = strategy.model(torch.cat([x, x.flip(1)]))
    expected = strategy.train_loss(torch.stack([outputs[:5], outputs[5:]], 1), y)
    torch.testing.assert_close(batch_loss(strategy, [x, y, task_labels]), expected)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("passes", ["auto", "loop"])
def test_scr_beside_mgem(passes, groups):
    """Its memory rows are the gradients of its own loss, at every iteration of the second task."""
    plugin = MGEMPlugin(9, memory_groups=groups, memory_passes=passes, seed=0)
    checked = []

    def check(strategy):
        for group, row in zip(plugin.memory.closed_groups(), plugin._matrix.rows, strict=False):
            own = [p for p in strategy.model.parameters() if p.requires_grad]
            x, y, _ = group.batch
            n = len(x)
            outputs = strategy.model(torch.cat([x, x.flip(1)]))
            loss = strategy.train_loss(torch.stack([outputs[:n], outputs[n:]], 1), y)
            parts = torch.autograd.grad(loss, own)
            torch.testing.assert_close(row, torch.cat([p.flatten() for p in parts]))
            checked.append(n)

    strategy = scr([plugin, Call(before_backward=check)])
    train(strategy, class_stream().train_stream[:2])
    assert len(checked) == 3 * groups


def test_a_measured_pass_is_not_the_iterations_own():
    """Which mixed precision and accumulation tell apart by the events before it."""
    plugin, own = MGEMPlugin(9, seed=0), []

    class Noting(with_mixed_precision(Views)):
        def _forward(self, is_own):
            own.append(is_own)
            return super()._forward(is_own)

    strategy = Noting(**options(encoder(), [plugin]), criterion=own_loss, precision="bf16")
    train(strategy, class_stream().train_stream[:2])
    assert plugin.last_projection is not None
    assert own == [True] * 3 + [False, True] * 3


def own_loss(output, y):
    return nn.functional.cross_entropy(output.mean(1), y % 5)


class Views(Naive):
    """A user's strategy with two views of each sample, which counts what it does."""

    seen = 0

    def _before_forward(self, **kwargs):
        super()._before_forward(**kwargs)
        self.seen += 1
        self.mbatch[0] = torch.cat([self.mbatch[0], 2 * self.mbatch[0]])

    def _after_forward(self, **kwargs):
        super()._after_forward(**kwargs)
        self.mb_output = torch.stack(self.mb_output.chunk(2), 1)


class Scaled(Naive):
    def _before_forward(self, **kwargs):
        super()._before_forward(**kwargs)
        self.mbatch[0] = self.mbatch[0] / 10


class FirstOfTwo(Naive):
    """The model returns more than the loss takes."""

    def _after_forward(self, **kwargs):
        self.mb_output = self.mb_output[0]
        super()._after_forward(**kwargs)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x), x


@pytest.mark.parametrize("kind", [Views, Scaled, FirstOfTwo])
@pytest.mark.parametrize("wrap", [None, with_mixed_precision, with_gradient_accumulation])
def test_a_strategy_of_ones_own(kind, wrap):
    torch.manual_seed(0)
    model = TwoOutputs() if kind is FirstOfTwo else make_model()
    criterion = own_loss if kind is Views else nn.CrossEntropyLoss()
    compare, plugin = Compare(first_task), MGEMPlugin(8, memory_groups=2, seed=0)
    more = {"precision": "bf16"} if wrap is with_mixed_precision else {}
    more = {"micro_batch_size": 100} if wrap is with_gradient_accumulation else more
    made = kind if wrap is None else wrap(kind)
    strategy = made(**options(model, [compare, plugin]), criterion=criterion, **more)
    assert acts_around_forward(strategy)
    train(strategy, domain_stream().train_stream[:2])
    assert compare.compared == 3
    assert plugin.last_projection.dots.shape[1] == 2
    if kind is Views:
        assert strategy.seen == 6  # memory batches are not counted


class Replays(Naive):
    """Adds what it has seen to each minibatch, as soon as it has seen something."""

    before = None

    def _before_forward(self, **kwargs):
        super()._before_forward(**kwargs)
        if self.before is not None:
            self.mbatch = [torch.cat(pair) for pair in zip(self.mbatch, self.before, strict=True)]

    def _after_training_exp(self, **kwargs):
        self.before = [field[:2].clone() for field in self.mbatch]
        super()._after_training_exp(**kwargs)


def test_a_strategy_that_adds_samples_is_refused_by_name():
    strategy = Replays(**options(make_model(), [MGEMPlugin(8, seed=0)]))
    stream = domain_stream().train_stream
    strategy.train(stream[0])
    with pytest.raises(ValueError, match=r"Replays\._before_forward adds samples"):
        strategy.train(stream[1])


def der(plugins, criterion=None):
    more = {} if criterion is None else {"criterion": criterion}
    return DER(**options(make_model(), plugins), mem_size=12, batch_size_mem=4, **more)


def test_der_measures_its_loss_without_what_it_replays():
    plugin, lengths = MGEMPlugin(8, seed=0), []

    def check(strategy):
        if not plugin.memory.closed_groups():
            return
        lengths.append(len(strategy.mb_y))
        x, y, _ = plugin.memory.closed_groups()[0].batch
        loss = nn.functional.cross_entropy(strategy.model(x), y)
        parts = torch.autograd.grad(loss, list(strategy.model.parameters()))
        own = torch.cat([p.flatten() for p in parts])
        torch.testing.assert_close(plugin._matrix.rows[0], own)

    compare = Compare(first_task)
    train(der([compare, plugin, Call(before_backward=check)]), class_stream().train_stream[:2])
    assert lengths == [12, 12, 12]  # 8 and 4 replayed
    assert compare.compared == 3


def test_der_replays_the_same_with_and_without_measuring():
    ends = []
    for plugins in ([], [Compare(first_task)]):
        strategy = train(der(plugins), class_stream().train_stream)
        ends.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*ends)


def test_der_with_another_loss_is_refused():
    with pytest.raises(ValueError, match="DER trains with cross-entropy as soon as it replays"):
        train(der([MGEMPlugin(8)], nn.MultiMarginLoss()), class_stream().train_stream[:1])


@pytest.mark.parametrize("kind", [ER_ACE, ER_AML])
def test_strategies_whose_loop_replays(kind):
    model = make_model()
    more = {"feature_extractor": model} if kind is ER_AML else {}
    compare, plugin = Compare(first_task), MGEMPlugin(8, memory_groups=2, seed=0)
    strategy = kind(**options(model, [compare, plugin]), mem_size=40, batch_size_mem=4, **more)
    assert not acts_around_forward(strategy)
    train(strategy, class_stream().train_stream[: 1 if kind is ER_AML else 2])
    assert compare.compared == 3


class Classified(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.classifier = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.classifier(torch.relu(self.layer(x)))


def test_feature_replay_measures_its_loss_without_what_it_replays():
    plugin, checked = MGEMPlugin(8, seed=0), []

    def check(strategy):
        for group, row in zip(plugin.memory.closed_groups(), plugin._matrix.rows, strict=False):
            x, y, _ = group.batch
            loss = strategy._criterion(strategy.model(x), y)
            parts = torch.autograd.grad(loss, list(strategy.model.parameters()))
            torch.testing.assert_close(row, torch.cat([p.flatten() for p in parts]))
            checked.append(1)

    given = options(Classified(), [Compare(first_task), plugin, Call(before_backward=check)])
    train(FeatureReplay(**given, mem_size=12, batch_size_mem=4), class_stream().train_stream[:2])
    assert len(checked) == 3


def class_benchmark():
    stream = class_stream()
    parts = []
    for name in ("train_stream", "test_stream"):
        data = [sample for experience in getattr(stream, name) for sample in experience.dataset]
        x = torch.stack([torch.as_tensor(sample[0]) for sample in data])
        parts.append((x, torch.tensor([int(sample[1]) for sample in data])))
    sets = [TensorDataset(x, y) for x, y in parts]
    for data, (_, y) in zip(sets, parts, strict=True):
        data.targets = y.tolist()
    return nc_benchmark(*sets, 3, False, shuffle=False)


def icarl(plugins):
    torch.manual_seed(7)
    parts = {
        "feature_extractor": nn.Sequential(nn.Linear(6, 8), nn.ReLU()),
        "classifier": nn.Linear(8, 6),
    }
    parameters = [p for part in parts.values() for p in part.parameters()]
    return ICaRL(
        **parts,
        optimizer=torch.optim.SGD(parameters, lr=0.5),
        memory_size=12,
        buffer_transform=None,
        fixed_memory=True,
        train_mb_size=8,
        eval_mb_size=8,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
    )


def test_icarl_measures_with_its_distillation():
    compare, plugin = Compare(), MGEMPlugin(8, 0.0, seed=0)
    strategy = icarl([compare])
    assert acts_around_forward(strategy)
    train(strategy, class_benchmark().train_stream)
    assert compare.compared > 6
    train(icarl([plugin]), class_benchmark().train_stream)
    assert plugin.last_projection is not None
    assert all(p.old_logits is None for p in strategy.plugins if isinstance(p, ICaRLLossPlugin))


BOOKKEEPERS = {
    CoPE: {"mem_size": 12, "n_classes": 6, "p_size": 6},
    GSS_greedy: {"mem_size": 12, "mem_strength": 2, "input_size": [6]},
}


@pytest.mark.parametrize("kind", BOOKKEEPERS)
def test_what_keeps_books_hears_nothing_of_measured_batches(kind):
    """CoPE sums up its outputs and GSS chooses samples after each forward pass."""
    ends = []
    for plugins in ([], [Compare(lambda strategy: False)], [MGEMPlugin(8, seed=0)]):
        torch.manual_seed(3)
        model = Classified()
        given = options(model, plugins) | BOOKKEEPERS[kind] | {"criterion": nn.CrossEntropyLoss()}
        train(kind(**given), class_stream().train_stream[:1])
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("mask", ["seen", "all", "old", "new"])
def test_a_loss_that_is_zero_on_the_past_is_refused(mask):
    strategy = make_strategy(make_model(), [MGEMPlugin(8, seed=0), loss := MaskedCrossEntropy()])
    loss.mask, strategy._criterion = mask, loss
    stream = class_stream().train_stream
    if mask == "new":
        with pytest.raises(ValueError, match=r"MaskedCrossEntropy\(mask='new'\) is zero"):
            strategy.train(stream[0])
    elif mask != "old":  # of which there is none in a first task
        train(strategy, stream[:2])


def test_prompts_that_mask_the_past_are_refused():
    class LearningToPrompt(Naive):  # Avalanche's needs the library timm
        use_mask = True

    strategy = LearningToPrompt(**options(make_model(), [MGEMPlugin(8, seed=0)]))
    with pytest.raises(ValueError, match=r"LearningToPrompt\(use_mask=True\)"):
        strategy.train(class_stream().train_stream[0])


class Changes(SupervisedPlugin):
    """Changes something of each minibatch, in one of the events."""

    def __init__(self, event, change):
        super().__init__()
        setattr(self, event, lambda strategy, **_: change(strategy))


def set_x(x):
    def change(strategy):
        strategy.mbatch[0] = x(strategy.mb_x)

    return change


def set_output(output):
    def change(strategy):
        strategy.mb_output = output(strategy.mb_output)

    return change


CHANGES = {
    "scales the batch": ("before_forward", set_x(lambda x: x / 10)),
    "scales it before the iteration": ("before_training_iteration", set_x(lambda x: x / 10)),
    "scales it in place": ("before_forward", set_x(lambda x: x.mul_(0.1))),
    "mixes labels": (
        "before_forward",
        lambda s: s.mbatch.__setitem__(1, s.mb_y.flip(0)),
    ),
    "masks the output": ("after_forward", set_output(lambda o: o + torch.tensor([0.0] * 5 + [-9]))),
    "masks it in place": ("after_forward", set_output(lambda o: o.detach().fill_(0.0))),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("measures", [MGEMPlugin, HybridMagnitudePlugin])
def test_a_plugin_that_changes_minibatches_is_refused_before_the_first_step(measures, name, first):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    plugin = measures(8, seed=0) if measures is MGEMPlugin else measures(seed=0)
    plugins = [Changes(*CHANGES[name]), plugin]
    strategy = make_strategy(model, plugins if first else plugins[::-1])
    with pytest.raises(ValueError, match=rf"Changes\.{CHANGES[name][0]} changes the minibatch"):
        strategy.train(domain_stream().train_stream[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class ScalesIterations(Naive):
    def _before_training_iteration(self, **kwargs):
        super()._before_training_iteration(**kwargs)
        self.mbatch[0] = self.mbatch[0] / 10


def test_a_strategy_that_changes_minibatches_elsewhere_is_refused():
    strategy = ScalesIterations(**options(make_model(), [MGEMPlugin(8)]))
    with pytest.raises(ValueError, match=r"ScalesIterations\._before_training_iteration changes"):
        strategy.train(domain_stream().train_stream[0])


def add_samples(strategy):
    strategy.mbatch = [torch.cat([field, field[:2]]) for field in strategy.mbatch]


@pytest.mark.parametrize("event", ["before_training_iteration", "before_forward"])
@pytest.mark.parametrize(
    "change",
    [
        add_samples,  # as generative replay does
        lambda strategy: setattr(strategy, "mbatch", [field[:3] for field in strategy.mbatch]),
        lambda strategy: strategy.mbatch.append("a note"),
        lambda strategy: strategy.mb_x.sum(),
    ],
)
def test_what_adds_samples_or_only_looks_is_let_pass(event, change):
    plugin = Changes(event, change)
    train(make_strategy(make_model(), [MGEMPlugin(8), plugin]), domain_stream().train_stream[:2])
    assert callable(vars(plugin)[event])
    assert type(vars(plugin)[event]).__name__ == "function"  # the look is over


class Counting(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.calls = []

    def before_forward(self, strategy, **kwargs):
        self.calls.append("before")

    def after_forward(self, strategy, **kwargs):
        self.calls.append("after")


def test_other_plugins_hear_their_events_once_an_iteration():
    counting = Counting()
    for kind in (Naive, Scaled):
        counting.calls.clear()
        strategy = kind(**options(make_model(), [MGEMPlugin(8), counting]))
        train(strategy, domain_stream().train_stream[:2])
        assert counting.calls == ["before", "after"] * 6
    assert list(vars(counting)) == list(vars(Counting()))
