"""A minibatch in parts is the minibatch: gradients, scores, decisions, outputs and losses."""

import copy
import math
import pickle

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import DER, EWC, LwF, Naive, Replay
from tiny import (
    SETTINGS,
    Call,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    relative_distance,
    train,
)
from torch import nn

from avalanche_mgem import (
    MGEM,
    GradientAccumulation,
    HybridMagnitudePlugin,
    MGEMPlugin,
    MIGUPlugin,
    with_gradient_accumulation,
)

PLUGINS = {
    "plain": list,
    "mgem": lambda: [MGEMPlugin(12, seed=0, parameter_groups="layer")],
    "mgem update": lambda: [MGEMPlugin(12, seed=0, memory_groups=2, restrict="update")],
    "migu": lambda: [MIGUPlugin(0.5)],
    "hybrid": lambda: [HybridMagnitudePlugin(seed=0, threshold=2.0)],
    "mgem and migu": lambda: [MGEMPlugin(12, seed=0), MIGUPlugin(0.5, freeze="update")],
}
both_ways = pytest.mark.parametrize("recompute", [True, False])


def parts(strategy=Naive, micro_batch_size=3, recompute=True):
    """The strategy, as a function of its arguments, in micro-batches."""

    def make(**arguments):
        made = with_gradient_accumulation(strategy)
        return made(micro_batch_size=micro_batch_size, recompute=recompute, **arguments)

    return make


def run(plugins=(), setting="single head", strategy=Naive, n=2, **arguments):
    model = make_model(setting)
    made = make_strategy(model, plugins, strategy=strategy, train_epochs=2, **arguments)
    return train(made, domain_stream(n).train_stream)


def same(one, other, far=1e-4):
    return relative_distance(parameter_vector(one.model), parameter_vector(other.model)) < far


@pytest.mark.cover
@both_ways
@pytest.mark.parametrize("plugins", PLUGINS)
def test_parts_train_as_the_whole_does(plugins, recompute):
    whole = run(PLUGINS[plugins]())
    divided = run(PLUGINS[plugins](), strategy=parts(recompute=recompute))
    assert same(divided, whole)
    for one, other in zip(divided.plugins, whole.plugins, strict=True):
        if isinstance(one, MIGUPlugin):
            torch.testing.assert_close(one.last_scores, other.last_scores)
            assert all(torch.equal(one.last_mask[k], other.last_mask[k]) for k in one.last_mask)
        if isinstance(one, HybridMagnitudePlugin):
            assert one.last_decision.trained == other.last_decision.trained
            assert one.last_decision.similarity == pytest.approx(
                other.last_decision.similarity, abs=1e-5
            )


@both_ways
@pytest.mark.parametrize("plugins", ["mgem", "mgem and migu"])
def test_an_iteration_shows_the_whole_minibatch(plugins, recompute):
    def seen_by(strategy):
        seen = []

        def look(strategy):
            gradient = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
            shown = (
                strategy.mb_output.detach().clone(),
                strategy.mb_y,
                float(strategy.loss.detach()),
            )
            seen.append((*shown, gradient.clone()))

        plugins_ = [*PLUGINS[plugins](), Call(before_update=look)]
        accuracy = EvaluationPlugin(accuracy_metrics(minibatch=True, epoch=True))
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        made = strategy(
            model=model,
            optimizer=optimizer,
            train_mb_size=8,
            plugins=plugins_,
            evaluator=accuracy,
        )
        train(made, domain_stream(2).train_stream)
        return seen, accuracy.get_last_metrics()

    whole, metrics = seen_by(Naive)
    divided, divided_metrics = seen_by(parts(recompute=recompute))
    assert len(divided) == len(whole) == 6
    for one, other in zip(divided, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert divided_metrics == pytest.approx(metrics)


@both_ways
@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
def test_any_size_of_the_parts_will_do(micro_batch_size, recompute):
    strategy = parts(micro_batch_size=micro_batch_size, recompute=recompute)
    assert same(run(strategy=strategy, n=1), run(n=1))


@both_ways
@pytest.mark.parametrize("plugins", PLUGINS)
def test_no_more_samples_than_a_micro_batch_are_in_the_model_with_a_graph(plugins, recompute):
    sizes = set()

    class Counts(nn.Linear):
        def forward(self, x):
            if torch.is_grad_enabled():
                sizes.add(len(x))
            return super().forward(x)

    model = nn.Sequential(Counts(6, 8), nn.ReLU(), nn.Linear(8, 6))
    strategy = make_strategy(model, PLUGINS[plugins](), strategy=parts(recompute=recompute))
    train(strategy, domain_stream(2).train_stream)
    assert max(sizes) == 3


@pytest.mark.parametrize(("recompute", "passes"), [(True, 5), (False, 3)])
def test_how_many_passes_forward_a_minibatch_takes(recompute, passes):
    calls = []
    model = make_model()
    strategy = make_strategy(model, strategy=parts(recompute=recompute))
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    strategy.train(domain_stream(1).train_stream[0])  # of 24 samples, in minibatches of 8
    assert len(calls) == 3 * passes


PEERS = {
    "replay": (Replay, {"mem_size": 12}),
    "ewc": (EWC, {"ewc_lambda": 10.0}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "our own": (MGEM, {"patterns_per_experience": 12, "seed": 0}),
}


@pytest.mark.parametrize(
    ("peer", "recompute"),
    [(peer, way) for peer in PEERS for way in (True, False) if (peer, way) != ("lwf", False)],
)
def test_peers_train_in_parts(peer, recompute):
    strategy, arguments = PEERS[peer]
    divided = run(strategy=parts(strategy, recompute=recompute), **arguments)
    assert same(divided, run(strategy=strategy, **arguments))


def test_a_plugin_that_uses_the_output_is_refused_without_recomputing():
    with pytest.raises(ValueError, match="take recompute=True"):
        run(strategy=parts(LwF, recompute=False), alpha=1.0, temperature=2.0)


def scale_loss(strategy):
    strategy.loss = 2 * strategy.loss


def replace_loss(strategy):
    strategy.loss = strategy.model[0].weight.square().sum()


def add_to_loss(strategy):
    strategy.loss += 0.1 * strategy.model[0].weight.square().sum()


@pytest.mark.parametrize("change", [scale_loss, replace_loss])
def test_a_plugin_that_changes_the_loss_is_refused_without_recomputing(change):
    start = parameter_vector(make_model())
    plugins = [Call(before_backward=change)]
    strategy = make_strategy(make_model(), plugins, strategy=parts(recompute=False))
    with pytest.raises(ValueError, match="take recompute=True"):
        strategy.train(domain_stream(1).train_stream[0])
    assert torch.equal(parameter_vector(strategy.model), start)


@pytest.mark.parametrize(
    ("change", "recompute"),
    [(scale_loss, True), (replace_loss, True), (add_to_loss, True), (add_to_loss, False)],
)
def test_what_plugins_do_to_the_loss_is_done_once(change, recompute):
    plugins = [Call(before_backward=change)]
    assert same(run(plugins, strategy=parts(recompute=recompute), n=1), run(plugins, n=1))


def test_a_loss_that_is_no_mean_over_samples():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def end(strategy):
        model = make_model()
        made = strategy(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.3),
            criterion=nn.CrossEntropyLoss(weight=weights),
            train_mb_size=8,
            evaluator=EvaluationPlugin(),
        )
        return train(made, domain_stream(1).train_stream)

    assert same(end(parts()), end(Naive))
    with pytest.raises(ValueError, match="the mean of its samples' losses"):
        end(parts(recompute=False))


@pytest.mark.parametrize("setting", ["growing head", "a head a task", "frozen part"])
@both_ways
def test_models_whose_heads_come_with_the_tasks(setting, recompute):
    ends = []
    for strategy in (Naive, parts(recompute=recompute)):
        plugins = [MGEMPlugin(12, seed=0), MIGUPlugin(0.5)]
        made = make_strategy(make_model(setting), plugins, strategy=strategy)
        ends.append(train(made, SETTINGS[setting][1]().train_stream))
    assert same(*ends)


def test_dropout_is_the_same_when_run_again():
    ends = [run(setting="dropout", strategy=parts(recompute=way), n=1) for way in (True, False)]
    assert same(*ends)


def test_running_statistics_see_each_micro_batch_once():
    ends = [run(setting="batch norm", strategy=parts(recompute=way), n=1) for way in (True, False)]
    assert [int(end.model[1].num_batches_tracked) for end in ends] == [2 * 3 * 3] * 2
    assert same(*ends)
    torch.testing.assert_close(ends[0].model[1].running_var, ends[1].model[1].running_var)


def test_a_copy_or_a_pickle_trains_on_as_the_original():
    stream = domain_stream().train_stream
    strategy = make_strategy(make_model(), PLUGINS["mgem and migu"](), strategy=parts())
    train(strategy, stream[:2])
    others = [copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))]
    train(strategy, stream, first=2)
    for other in others:
        assert type(other) is type(strategy)
        assert torch.equal(
            parameter_vector(train(other, stream, first=2).model), parameter_vector(strategy.model)
        )


class Mine(GradientAccumulation, Replay):
    """As a user writes it."""


def test_a_class_of_ones_own_is_the_same():
    def mine(**arguments):
        return Mine(micro_batch_size=3, **arguments)

    ends = [run(strategy=s, n=1, mem_size=12) for s in (mine, parts(Replay))]
    assert torch.equal(*(parameter_vector(end.model) for end in ends))
    assert pickle.loads(pickle.dumps(ends[0])).micro_batch_size == 3


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None, "8", math.nan])
def test_a_size_out_of_range(size):
    with pytest.raises(ValueError, match="micro_batch_size must be a whole number >= 1"):
        make_strategy(make_model(), strategy=parts(micro_batch_size=size))


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="recompute must be True or False, got 1"):
        make_strategy(make_model(), strategy=parts(recompute=1))
    with pytest.raises(ValueError, match="strategy must be a class such as Naive"):
        with_gradient_accumulation(make_strategy(make_model()))
    with pytest.raises(TypeError, match="DER has a training loop of its own"):
        with_gradient_accumulation(DER)
    assert with_gradient_accumulation(Mine) is Mine
