"""Where MIGU leaves out the gradients of masked rows, and where somebody needs them."""

import copy

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from avalanche.training.supervised import Cumulative, Naive
from tiny import N_CLASSES, N_FEATURES, Call, domain_stream, make_strategy, parameter_vector, train
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.bridge import nonfinite, whole_gradients
from avalanche_mgem.bridge.accumulation import with_gradient_accumulation
from avalanche_mgem.bridge.precision import with_mixed_precision
from avalanche_mgem.bridge.whole_gradients import GradientReaders
from avalanche_mgem.model import kept_gradients, kept_products
from avalanche_mgem.plugins.clipping import ClipGradientPlugin

FUSED = "fused"


@pytest.fixture(autouse=True)
def whatever_the_size(monkeypatch):
    """Let the tiniest layer leave rows out."""
    monkeypatch.setattr(kept_gradients, "_A_MOVE", 0)
    monkeypatch.setattr(kept_gradients, "_A_CALL", -1)


def deep():
    torch.manual_seed(7)
    layers = [nn.Linear(N_FEATURES, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, N_CLASSES))


class OtherLoop(Naive):
    """The loop again, which nobody can know."""

    def training_epoch(self, **kwargs):
        super().training_epoch(**kwargs)


class OtherBackward(Naive):
    """A backward pass of its own."""

    def backward(self):
        self.loss.backward(retain_graph=True)


class OtherLoss(Naive):
    """A penalty on the weights, in the criterion."""

    def criterion(self):
        penalty = sum(p.square().sum() for p in self.model.parameters())
        return super().criterion() + 0.01 * penalty


class Reader(InteractiveLogger):
    """A logger that could read gradients."""

    def after_backward(self, strategy, metric_values, **kwargs):
        pass


def evaluator(*loggers):
    metrics = [*accuracy_metrics(minibatch=True), *loss_metrics(epoch=True)]
    return EvaluationPlugin(*metrics, loggers=list(loggers))


# case -> (strategy's class, plugins beside, reason; FUSED: there is none)
CASES = {
    "alone": (Naive, list, FUSED),
    "cumulative": (Cumulative, list, FUSED),
    "replay": (Naive, lambda: [ReplayPlugin(12)], FUSED),
    "clipping": (Naive, lambda: [ClipGradientPlugin(0.1)], FUSED),
    "metrics": (Naive, lambda: [evaluator(InteractiveLogger())], FUSED),
    "bf16": (with_mixed_precision(Naive), list, FUSED),
    "mgem": (Naive, lambda: [MGEMPlugin(4)], "MGEMPlugin"),
    "hybrid": (Naive, lambda: [HybridMagnitudePlugin("initialized")], "HybridMagnitudePlugin"),
    "ewc": (Naive, lambda: [EWCPlugin(1.0)], "EWCPlugin"),
    "lwf": (Naive, lambda: [LwFPlugin()], "LwFPlugin"),
    "reader": (Naive, lambda: [Call(after_backward=lambda strategy: None)], "Call"),
    "logger": (Naive, lambda: [evaluator(Reader())], "Reader"),
    "another": (Naive, lambda: [MIGUPlugin(0.3, skip_tasks=0)], "MIGUPlugin"),
    "loop": (OtherLoop, list, "the training loop of OtherLoop"),
    "backward": (OtherBackward, list, "backward of OtherBackward"),
    "loss": (OtherLoss, list, "criterion of OtherLoss"),
}


def trained(case, freeze, path, optimizer=AdamW, **arguments):
    """The parameters after two tasks, and the plugin."""
    strategy, beside, _ = CASES[case]
    plugin = MIGUPlugin(0.5, freeze=freeze, skip_tasks=0, **arguments)
    spoiling = [] if path == FUSED else [Call(before_backward=lambda strategy: None)]
    made = make_strategy(
        deep(),
        [*beside(), plugin, *spoiling],
        strategy=strategy,
        optimizer=lambda model: optimizer(model.parameters(), lr=0.01),
    )
    train(made, domain_stream().train_stream[:2])
    return parameter_vector(made.model), plugin


@pytest.mark.parametrize("case", CASES)
def test_each_case_takes_its_path_with_the_same_result(case):
    freeze = "update" if list(CASES).index(case) % 2 else "gradient"
    reason = CASES[case][2]
    ours, plugin = trained(case, freeze, FUSED)
    others, whole = trained(case, freeze, "masked")
    expected = FUSED if reason == FUSED else f"masked: {reason}"
    assert plugin.last_path == {"0": expected, "2": expected}
    assert set(whole.last_path.values()) <= {f"masked: {reason}", "masked: Call"}
    torch.testing.assert_close(ours, others, rtol=1e-3 if case == "bf16" else 1e-4, atol=1e-5)
    for name, mask in whole.last_mask.items():
        assert torch.equal(plugin.last_mask[name], mask)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"score": "gradient"}, "score='gradient'"),
        ({"score": "weight"}, "score='weight'"),
        ({"score": "random", "seed": 1}, "score='random'"),
        ({"ungated": "freeze"}, FUSED),
        ({"normalize": "token"}, FUSED),
        ({"heads": ["4"]}, FUSED),
    ],
    ids=str,
)
def test_scores_that_are_known_later_need_whole_gradients(arguments, reason):
    _, plugin = trained("alone", "gradient", FUSED, **arguments)
    expected = FUSED if reason == FUSED else f"masked: {reason}"
    assert set(plugin.last_path.values()) == {expected}


def test_the_first_task_masks_nothing_and_the_second_begins_at_once():
    plugin, paths = MIGUPlugin(0.5), []
    note = Call(after_update=lambda strategy: paths.append(plugin.last_path))
    train(make_strategy(deep(), [plugin, note]), domain_stream().train_stream[:2])
    assert paths[:3] == [None] * 3
    assert paths[3:] == [{"0": FUSED, "2": FUSED}] * 3


def test_accumulated_micro_batches_are_whole():
    plugin = MIGUPlugin(0.5, skip_tasks=0)
    made = make_strategy(
        deep(), [plugin], strategy=with_gradient_accumulation(Naive), micro_batch_size=3
    )
    train(made, domain_stream().train_stream[:1])
    assert FUSED not in plugin.last_path.values()


def test_scaled_gradients_are_whole():
    plugin = MIGUPlugin(0.5, skip_tasks=0)
    made = make_strategy(
        deep(), [plugin], strategy=with_mixed_precision(Naive), precision="fp16", init_scale=2.0
    )
    train(made, domain_stream().train_stream[:1])
    assert set(plugin.last_path.values()) == {"masked: gradients that are scaled"}


def test_the_clipped_norm_is_that_of_the_kept_rows_both_ways():
    norms = []
    for spoiling in ([], [Call(before_backward=lambda strategy: None)]):
        clip, seen = ClipGradientPlugin(0.1), []
        note = Call(after_update=lambda strategy, clip=clip, seen=seen: seen.append(clip.last_norm))
        plugins = [MIGUPlugin(0.5, skip_tasks=0), clip, note, *spoiling]
        train(make_strategy(deep(), plugins), domain_stream().train_stream[:2])
        norms.append(seen)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_masked_rows_do_not_move_by_one_bit():
    plugin, seen = MIGUPlugin(0.5, freeze="update", skip_tasks=0), []

    def compare(strategy):
        for name, mask in plugin.last_mask.items():
            weight = strategy.model[int(name)].weight
            moved = (weight != before[name]).any(1)
            assert not moved[~mask].any()
            assert not weight.grad[~mask].any()
            seen.append(bool(moved[mask].any()))

    before = {}
    remember = Call(
        before_training_iteration=lambda s: before.update(
            {name: copy.deepcopy(s.model[int(name)].weight.detach()) for name in "02"}
        )
    )
    optimizer = lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)  # noqa: E731
    compared = Call(after_update=compare)
    made = make_strategy(deep(), [remember, plugin, compared], optimizer=optimizer)
    train(made, domain_stream().train_stream[:2])
    assert plugin.last_path == {"0": FUSED, "2": FUSED}
    assert all(seen)
    assert len(seen) == 12


class Harmless(SupervisedPlugin):
    pass


class ReadsGradients(SupervisedPlugin):
    def after_backward(self, strategy, **kwargs):
        pass


def swap(strategy):
    strategy.plugins.pop()
    strategy.plugins.append(ReadsGradients())


def give_function(strategy):
    strategy.plugins[-1].after_backward = lambda strategy, **kwargs: None


def give_backward(strategy):
    strategy.backward = lambda: None


def give_logger(strategy):
    strategy.evaluator.loggers.append(Reader())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swap, "ReadsGradients"),
        (give_function, "Harmless"),
        (give_backward, "backward of Naive"),
        (give_logger, "Reader"),
    ],
)
def test_who_reads_gradients_is_asked_again_where_something_has_changed(change, why):
    plugin, readers = MIGUPlugin(0.5), GradientReaders()
    strategy = make_strategy(deep(), [plugin])
    strategy.plugins.append(Harmless())
    assert readers.why(strategy, plugin) == ""
    before = copy.deepcopy(readers)
    change(strategy)
    assert readers.why(strategy, plugin) == before.why(strategy, plugin) == why


def test_who_reads_gradients_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(whole_gradients, "why_whole", lambda *arguments: asked.append(1) or "")
    train(
        make_strategy(deep(), [plugin := MIGUPlugin(0.5, skip_tasks=0)]),
        domain_stream().train_stream[:1],
    )
    assert len(asked) == 1
    assert not plugin._readers._seen


@pytest.fixture
def reads(monkeypatch):
    """Let gradients be known by the norms of their factors, whatever their size; who reads them."""
    monkeypatch.setattr(kept_products, "_SMALL", 0)
    read = []
    known = nonfinite.all_finite
    monkeypatch.setattr(nonfinite, "all_finite", lambda t: read.append(1) or known(t))
    return read


def test_gradients_with_small_factors_are_not_read(reads):
    _, plugin = trained("alone", "gradient", FUSED)
    assert set(plugin.last_path.values()) == {FUSED}
    assert not reads


def test_a_gradient_that_overflows_is_seen_though_its_factors_are_finite(reads):
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.tanh()

        @staticmethod
        def backward(ctx, dy):
            return dy * 1e10

    class Large(nn.Module):
        """A layer whose input is near 1e30, and the gradient of its output near 1e10."""

        def __init__(self):
            super().__init__()
            self.large, self.head = nn.Linear(N_FEATURES, 8), nn.Linear(8, N_CLASSES)

        def forward(self, x):
            return self.head(Steep.apply(self.large(x * 1e30)))

    plugin = MIGUPlugin(0.5, skip_tasks=0, heads=["head"], on_nonfinite="skip")
    strategy = make_strategy(Large(), [plugin])
    train(strategy, domain_stream().train_stream[:1])
    assert plugin.skipped_steps == strategy.clock.train_iterations
    assert reads
