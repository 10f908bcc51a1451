"""Half precision: the same as torch's own recipe, and plugins compare gradients without a scale."""

import copy
import math
import pickle

import pytest
import torch
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import ER_ACE, EWC, LwF, Naive, Replay
from made_optimizers import WithClosure
from tiny import (
    Call,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    relative_distance,
    sgd,
    train,
)
from torch import nn
from torch.optim import AdamW

from avalanche_mgem import (
    MGEM,
    ClipGradientPlugin,
    HybridMagnitudePlugin,
    MGEMPlugin,
    MIGUPlugin,
    MixedPrecision,
    with_gradient_accumulation,
    with_mixed_precision,
)

PLUGINS = {
    "plain": list,
    "mgem": lambda: [MGEMPlugin(12, 0.0, seed=0, ridge="relative")],
    "mgem update": lambda: [MGEMPlugin(12, seed=0, restrict="update")],
    "migu": lambda: [MIGUPlugin(0.5, skip_tasks=0, freeze="update")],
    "hybrid": lambda: [HybridMagnitudePlugin(seed=0, threshold=2.0)],
    "mgem and migu": lambda: [MGEMPlugin(12, seed=0), MIGUPlugin(0.5), ClipGradientPlugin(0.5)],
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
each_precision = pytest.mark.parametrize("precision", DTYPES)
OVERFLOWS = 2.0**40


def half(precision, strategy=Naive, **fixed):
    """The strategy, as a function of its arguments, in half precision."""

    def make(**arguments):
        return with_mixed_precision(strategy)(precision=precision, **fixed, **arguments)

    return make


def adamw(model):
    return AdamW(model.parameters(), lr=0.02)


def data(stream):
    samples = stream[0].dataset
    return torch.stack([x for x, *_ in samples]), torch.tensor([y for _, y, *_ in samples])


def vector(gradients):
    return torch.cat([g.flatten() for g in gradients])


@each_precision
@pytest.mark.parametrize("init_scale", [2.0**16, OVERFLOWS])
def test_it_is_torchs_own_recipe(precision, init_scale):
    """To the bit, steps that overflow included; the minibatches are taken down as they come."""
    batches = []
    watch = Call(before_forward=lambda s: batches.append((s.mb_x.clone(), s.mb_y.clone())))
    strategy = make_strategy(
        make_model(), [watch], strategy=half(precision, init_scale=init_scale), train_epochs=10
    )
    strategy.train(domain_stream(1).train_stream[0])

    model = make_model()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, enabled=precision == "fp16")
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", DTYPES[precision]):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(parameter_vector(strategy.model), parameter_vector(model))
    assert strategy.loss_scale == scaler.get_scale()
    overflows = precision == "fp16" and init_scale == OVERFLOWS
    assert (strategy.skipped_steps > 10) == overflows
    assert strategy.skipped_steps < len(batches)


@pytest.mark.cover
@each_precision
@pytest.mark.parametrize("plugins", PLUGINS)
def test_it_trains_near_to_single_precision(plugins, precision):
    stream = domain_stream(2).train_stream
    ends = []
    for strategy in (Naive, half(precision)):
        made = make_strategy(make_model(), PLUGINS[plugins](), strategy=strategy, train_epochs=3)
        ends.append(train(made, stream))
    single, mixed = (parameter_vector(end.model) for end in ends)
    assert mixed.dtype == torch.float32
    assert 0.0 < relative_distance(mixed, single) < 0.1


@each_precision
def test_plugins_and_metrics_see_gradients_and_losses_without_a_scale(precision):
    found = []

    def look(strategy):
        model = copy.deepcopy(strategy.model)
        loss = nn.functional.cross_entropy(model(strategy.mb_x), strategy.mb_y)
        exact = vector(torch.autograd.grad(loss, list(model.parameters())))
        own = vector([p.grad for p in strategy.model.parameters()])
        found.append(relative_distance(own, exact))
        assert float(strategy.loss.detach()) == pytest.approx(float(loss.detach()), rel=0.02)
        assert strategy.mb_output.dtype == torch.float32

    model = make_model()
    losses = EvaluationPlugin(loss_metrics(minibatch=True))
    strategy = half(precision)(
        model=model,
        optimizer=sgd(model),
        train_mb_size=8,
        evaluator=losses,
        plugins=[Call(after_backward=look)],
    )
    strategy.train(domain_stream(1).train_stream[0])
    assert len(found) == 3
    assert 0.0 < max(found) < 0.03
    assert all(value < 10 for value in losses.get_last_metrics().values())


@each_precision
@pytest.mark.parametrize("memory_precision", ["fp32", "bf16", None])
def test_restricted_gradients_are_in_the_cone_of_the_memorys(precision, memory_precision):
    mgem = MGEMPlugin(12, 0.0, seed=0, memory_groups=3, ridge="relative")
    harms, violated = [], []

    def measure(strategy):
        if mgem.last_projection is None:
            return
        gradient = vector([p.grad for p in strategy.model.parameters()])
        rows = mgem._matrix.rows
        assert rows.dtype == gradient.dtype == torch.float32
        violated.append(mgem.last_projection.violated)
        harms.append(float((-(rows @ gradient) / (rows.norm(dim=1) * gradient.norm())).max()))

    strategy = make_strategy(
        make_model(),
        [mgem, Call(before_update=measure)],
        strategy=half(precision, memory_precision=memory_precision),
        train_epochs=3,
    )
    train(strategy, domain_stream(2).train_stream)
    assert len(harms) == 9
    assert any(violated)
    assert max(harms) < 1e-4


@pytest.mark.parametrize(
    ("precision", "memory_precision", "dtype"),
    [
        ("bf16", None, torch.bfloat16),
        ("bf16", "fp32", torch.float32),
        ("fp16", None, torch.float32),
        ("fp16", "bf16", torch.bfloat16),
    ],
)
def test_which_passes_are_in_which_precision(precision, memory_precision, dtype):
    seen = {}

    class Seen(nn.Linear):
        def forward(self, x):
            output = super().forward(x)
            seen.setdefault(place["of"], set()).add(output.dtype)
            return output

    def at(name):
        return lambda strategy: place.update(of=name)

    place = {"of": "probe"}
    model = nn.Sequential(Seen(6, 8), nn.ReLU(), nn.Linear(8, 6))
    own = Call(before_forward=at("own"), before_backward=at(None), after_backward=at("memory"))
    plugins = [HybridMagnitudePlugin(seed=0), MGEMPlugin(12, seed=0), own]
    strategy = make_strategy(
        model, plugins, strategy=half(precision, memory_precision=memory_precision)
    )
    train(strategy, domain_stream(2).train_stream)
    place["of"] = "evaluation"
    strategy.eval(domain_stream(1).test_stream)
    half_ = {DTYPES[precision]}
    assert seen == {"own": half_, "memory": {dtype}, "evaluation": half_}


def test_small_gradients_of_the_memory_are_not_lost_in_float16():
    """A loss of which float16 alone would make zeros."""

    def tiny_loss(output, labels):
        return 1e-9 * nn.functional.cross_entropy(output, labels)

    mgem, found = MGEMPlugin(12, seed=0), []

    def look(strategy):
        found.append(bool((mgem._matrix.rows.norm(dim=1) > 0).all()))

    model = make_model()
    strategy = half("fp16")(
        model=model,
        optimizer=sgd(model),
        criterion=tiny_loss,
        train_mb_size=8,
        plugins=[mgem, Call(before_forward=look)],
        evaluator=EvaluationPlugin(),
    )
    train(strategy, domain_stream(2).train_stream)
    assert found[3:] == [True] * 3


@pytest.mark.cover
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused"])
@pytest.mark.parametrize("plugins", PLUGINS)
def test_steps_that_overflow_are_left_out_and_training_goes_on(plugins, optimizer):
    optimizers = {
        "sgd": sgd,
        "adamw": adamw,
        "fused": lambda m: AdamW(m.parameters(), lr=0.02, fused=True),
    }
    finite, moved = [], []
    before = {}

    def remember(strategy):
        before["theta"] = parameter_vector(strategy.model)

    def compare(strategy):
        after = parameter_vector(strategy.model)
        finite.append(bool(after.isfinite().all()))
        moved.append(not torch.equal(after, before["theta"]))

    watch = Call(before_training_iteration=remember, after_training_iteration=compare)
    strategy = make_strategy(
        make_model(),
        [*PLUGINS[plugins](), watch],
        strategy=half("fp16", init_scale=OVERFLOWS),
        optimizer=optimizers[optimizer],
        train_epochs=5,
    )
    train(strategy, domain_stream(2).train_stream)
    assert all(finite)
    assert 15 < moved.count(False) == strategy.skipped_steps < len(moved)
    assert all(moved[strategy.skipped_steps :])  # one after the other, at the start
    for state in strategy.optimizer.state.values():
        assert all(bool(v.isfinite().all()) for v in state.values() if isinstance(v, torch.Tensor))


@each_precision
@pytest.mark.parametrize("plugins", [name for name in PLUGINS if name != "plain"])
def test_what_a_plugin_spoils_is_no_overflow(plugins, precision):
    def spoil(strategy):
        assert not strategy.handles_nonfinite
        next(strategy.model.parameters()).grad[0, 0] = math.nan

    made = PLUGINS[plugins]()
    strategy = make_strategy(
        make_model(), [Call(after_backward=spoil), *made], strategy=half(precision, init_scale=1.0)
    )
    with pytest.raises(FloatingPointError, match="holds NaN or Inf"):
        strategy.train(domain_stream(1).train_stream[0])
    assert parameter_vector(strategy.model).isfinite().all()


@pytest.mark.cover
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("order", ["accumulation first", "precision first"])
@pytest.mark.parametrize("plugins", ["plain", "mgem and migu"])
@each_precision
def test_together_with_accumulation_in_either_order(precision, plugins, order, recompute):
    makers = [with_mixed_precision, with_gradient_accumulation]
    first, second = makers if order == "accumulation first" else makers[::-1]
    made = second(first(Naive))
    whole, divided = (
        make_strategy(make_model(), PLUGINS[plugins](), strategy=strategy)
        for strategy in (
            half(precision),
            lambda **a: made(precision=precision, micro_batch_size=3, recompute=recompute, **a),
        )
    )
    stream = domain_stream(2).train_stream
    train(whole, stream)
    train(divided, stream)
    assert pickle.loads(pickle.dumps(divided)).micro_batch_size == 3
    whole, divided = (parameter_vector(each.model) for each in (whole, divided))
    assert relative_distance(divided, whole) < 0.02


@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        (Replay, {"mem_size": 12}),
        (EWC, {"ewc_lambda": 10.0}),
        (LwF, {"alpha": 1.0, "temperature": 2.0}),
        (MGEM, {"patterns_per_experience": 12}),
    ],
)
@each_precision
def test_peers_train_in_it(strategy, arguments, precision):
    made = make_strategy(make_model(), strategy=half(precision, strategy), **arguments)
    train(made, domain_stream(2).train_stream)
    assert parameter_vector(made.model).isfinite().all()


def test_the_scale_is_part_of_a_copy_and_of_a_pickle():
    stream = domain_stream(2).train_stream
    strategy = make_strategy(
        make_model(),
        PLUGINS["mgem and migu"](),
        strategy=half("fp16", init_scale=2.0**30, growth_interval=2),
        train_epochs=5,
    )
    train(strategy, stream[:1])
    others = [copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))]
    scale = strategy.loss_scale
    train(strategy, stream, first=1)
    for other in others:
        assert (type(other), other.loss_scale) == (type(strategy), scale)
        train(other, stream, first=1)
        assert other.loss_scale == strategy.loss_scale
        assert other.skipped_steps == strategy.skipped_steps
        assert torch.equal(parameter_vector(other.model), parameter_vector(strategy.model))


def test_training_can_begin_again_after_an_error_in_the_midst_of_a_step():
    def fail(strategy):
        raise RuntimeError("an error of a plugin")

    stream = domain_stream(1).train_stream
    strategy = make_strategy(make_model(), [Call(before_update=fail)], strategy=half("fp16"))
    with pytest.raises(RuntimeError, match="an error of a plugin"):
        strategy.train(stream[0])
    strategy.plugins.pop(0)
    copied = pickle.loads(pickle.dumps(strategy))
    for each in (strategy, copied):
        torch.manual_seed(0)
        each.train(stream[0])
        assert (each.loss_scale, each.skipped_steps) == (2.0**16, 0)
    assert torch.equal(parameter_vector(strategy.model), parameter_vector(copied.model))


def test_gradients_that_no_scale_makes_finite_are_an_error():
    def spoil(strategy):
        strategy.loss = strategy.loss * float("nan")

    strategy = make_strategy(
        make_model(), [Call(before_backward=spoil)], strategy=half("fp16"), train_epochs=50
    )
    start = parameter_vector(strategy.model)
    message = "not finite at any scale of the loss, in experience 0, iteration 29: the loss is nan"
    with pytest.raises(FloatingPointError, match=message):
        strategy.train(domain_stream(1).train_stream[0])
    assert torch.equal(parameter_vector(strategy.model), start)


def test_parameters_in_float16_are_refused():
    model = make_model().half()
    strategy = make_strategy(model, strategy=half("fp16"))
    with pytest.raises(ValueError, match=r"parameters in float32, got '0\.weight' in float16"):
        strategy.train(domain_stream(1).train_stream[0])


class Mine(MixedPrecision, Replay):
    """As a user writes it."""


def test_a_class_of_ones_own_is_the_same():
    ends = [
        train(
            make_strategy(make_model(), strategy=strategy, mem_size=12),
            domain_stream(1).train_stream,
        )
        for strategy in (Mine, half("bf16", Replay))
    ]
    assert torch.equal(*(parameter_vector(end.model) for end in ends))
    assert pickle.loads(pickle.dumps(ends[0])).precision == "bf16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "half"}, "precision: unknown 'half'"),
        ({"precision": torch.float16}, "precision: unknown torch.float16"),
        ({"memory_precision": "fp16"}, "memory_precision: unknown 'fp16'"),
        ({"init_scale": 0.0}, "init_scale must be a finite number > 0"),
        ({"growth_interval": 0}, "growth_interval must be a whole number >= 1"),
    ],
    ids=str,
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(make_model(), strategy=with_mixed_precision(Naive), **arguments)


def test_what_is_no_strategy_of_this_kind():
    with pytest.raises(ValueError, match="strategy must be a class such as Naive or Replay"):
        with_mixed_precision(nn.Linear)
    with pytest.raises(TypeError, match="ER_ACE has a training loop of its own"):
        with_mixed_precision(ER_ACE)


def test_a_scaled_step_takes_no_other_way_of_stepping():
    with pytest.raises(ValueError, match=r"precision='fp16' .* optimizer_step .*WithClosure.*bf16"):
        make_strategy(make_model(), strategy=half("fp16", strategy=WithClosure))
    made = make_strategy(make_model(), [MIGUPlugin()], strategy=half("bf16", strategy=WithClosure))
    assert parameter_vector(train(made, domain_stream(2).train_stream).model).isfinite().all()
