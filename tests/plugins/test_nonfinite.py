"""NaN and Inf never reach the weights: the step raises an error, or is skipped and counted."""

import copy
import itertools
import pickle
from types import SimpleNamespace

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.synaptic_intelligence import SynapticIntelligencePlugin
from tiny import (
    N_CLASSES,
    N_FEATURES,
    SETTINGS,
    Call,
    class_stream,
    domain_stream,
    make_model,
    make_strategy,
    parameter_vector,
    train,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.bridge import nonfinite
from avalanche_mgem.bridge.finite import all_finite, have_small_products, row_reason
from avalanche_mgem.bridge.nonfinite import StepGuard
from avalanche_mgem.evaluation import skipped_steps_metrics
from avalanche_mgem.model.snapshot import OptimizerSnapshot

NAN, INF = float("nan"), float("inf")
PLUGINS = {
    "mgem": lambda how: MGEMPlugin(6, memory_groups=2, seed=0, on_nonfinite=how),
    "mgem update": lambda how: MGEMPlugin(6, restrict="update", seed=0, on_nonfinite=how),
    "migu": lambda how: MIGUPlugin(0.5, on_nonfinite=how),
    "migu update": lambda how: MIGUPlugin(0.5, freeze="update", on_nonfinite=how),
    "hybrid": lambda how: HybridMagnitudePlugin("frozen", low=0, on_nonfinite=how),
}
OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
}
# The parameter is one that trains under every plugin.
KINDS = {
    "loss": r"the loss is NaN or Inf, got nan",
    "nan": r"the gradient of '3.bias' holds NaN or Inf",
    "inf": r"the gradient of '3.bias' holds NaN or Inf",
    "batch": r"the loss is NaN or Inf, got nan",
}
STATISTICS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
PLACE = r", in experience 1, iteration 1; the weights are as before"


def state_of(strategy):
    """Copies of all that a step may change: parameters, buffers, the optimiser's state."""
    state = copy.deepcopy(strategy.optimizer.state_dict()["state"])
    moments = {(i, k): v for i, own in state.items() for k, v in own.items()}
    model = {k: v.detach().clone() for k, v in strategy.model.state_dict().items()}
    return {**model, **moments}


def differing(one, other):
    if one.keys() != other.keys():
        return one.keys() ^ other.keys()
    same = {k: torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one}
    return {k for k, equal in same.items() if not equal}


class Poison(SupervisedPlugin):
    """Makes something of some iterations not finite, and sees what each iteration changes.

    It must be the first plugin.
    """

    def __init__(self, kind, at=(4,)):
        super().__init__()
        self.kind, self.at, self.changed = kind, at, []

    def is_now(self, strategy):
        return strategy.clock.train_iterations in self.at

    def before_training_iteration(self, strategy, **kwargs):
        self.before = state_of(strategy)

    def before_forward(self, strategy, **kwargs):
        if self.kind == "batch" and self.is_now(strategy):
            strategy.mbatch[0] = strategy.mbatch[0] * NAN

    def before_backward(self, strategy, **kwargs):
        if self.kind == "loss" and self.is_now(strategy):
            strategy.loss = strategy.loss + NAN  # the gradients are finite

    def after_backward(self, strategy, **kwargs):
        if self.kind in ("nan", "inf") and self.is_now(strategy):
            strategy.model[3].bias.grad[1] = float(self.kind)

    def after_training_iteration(self, strategy, **kwargs):
        self.changed.append(differing(self.before, state_of(strategy)))


def poisoned(kind, plugins, optimizer="sgd", at=(4,), experiences=2):
    """Train two experiences of three iterations each."""
    poison = Poison(kind, at)
    strategy = make_strategy(
        make_model("batch norm"), [poison, *plugins], optimizer=OPTIMIZERS[optimizer]
    )
    train(strategy, domain_stream().train_stream[:experiences])
    return strategy, poison


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLUGINS)
def test_a_skipped_step_changes_nothing_by_a_bit_and_is_counted(name, kind):
    plugin = PLUGINS[name]("skip")
    turn = (list(PLUGINS).index(name) + list(KINDS).index(kind)) % 2
    _, poison = poisoned(kind, [plugin], list(OPTIMIZERS)[turn])
    assert [bool(changed) for changed in poison.changed] == [True] * 4 + [False] + [True]
    assert plugin.skipped_steps == 1


class RunningMean(nn.Module):
    """Keeps a mean in a buffer of its own, which it makes anew each time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(N_FEATURES))

    def forward(self, x):
        if self.training:
            self.center = 0.9 * self.center + 0.1 * x.detach().mean(dim=0)
        return x - self.center


@pytest.mark.parametrize("name", PLUGINS)
def test_buffers_of_any_kind_are_put_back(name):
    plugin = PLUGINS[name]("skip")
    model = nn.Sequential(RunningMean(), nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 6))
    strategy = make_strategy(model, [Poison("batch", at=(1,)), plugin])
    strategy.train(domain_stream(1).train_stream[0])
    assert plugin.skipped_steps == 1
    assert model[0].center.isfinite().all()
    assert model[0].center.any()


@pytest.mark.parametrize("how", ["raise", "skip"])
@pytest.mark.parametrize("name", PLUGINS)
def test_where_a_weight_itself_is_not_finite_nothing_is_skipped(name, how):
    strategy = make_strategy(make_model("batch norm"), [PLUGINS[name](how)])
    with torch.no_grad():
        strategy.model[3].bias[1] = NAN
    with pytest.raises(FloatingPointError, match="NaN" if how == "raise" else r"'3\.bias' itself"):
        strategy.train(domain_stream(1).train_stream[0])


@pytest.mark.parametrize("kind", ["loss", "inf"])
@pytest.mark.parametrize("name", PLUGINS)
def test_the_error_says_what_and_where_and_nothing_has_moved(name, kind):
    poison = Poison(kind)
    strategy = make_strategy(make_model("batch norm"), [poison, PLUGINS[name]("raise")])
    stream = domain_stream().train_stream
    strategy.train(stream[0])
    with pytest.raises(FloatingPointError, match=KINDS[kind] + PLACE):
        strategy.train(stream[1])
    assert differing(poison.before, state_of(strategy)) <= STATISTICS


@pytest.mark.parametrize("names", [*itertools.permutations(["mgem", "migu update", "hybrid"], 2)])
def test_plugins_together_skip_a_step_once(names):
    kind = "nan" if names[0] < names[1] else "loss"
    plugins = [PLUGINS[name]("skip") for name in names]
    _, poison = poisoned(kind, plugins, at=(1, 4))
    assert [bool(changed) for changed in poison.changed] == [True, False, True] * 2
    assert [plugin.skipped_steps for plugin in plugins] == [2, 2]


@pytest.mark.parametrize("how", [("raise", "skip"), ("skip", "raise")])
def test_where_one_of_them_is_to_raise_it_raises(how):
    plugins = [PLUGINS["mgem"](how[0]), PLUGINS["migu"](how[1])]
    with pytest.raises(FloatingPointError, match=KINDS["nan"]):
        poisoned("nan", plugins)
    assert [plugin.skipped_steps for plugin in plugins] == [0, 0]


def after_one_task_with_a_bad_memory(plugins, bad, optimizer="adamw"):
    strategy = make_strategy(
        make_model("batch norm"), plugins, optimizer=OPTIMIZERS[optimizer], train_epochs=2
    )
    stream = domain_stream().train_stream
    strategy.train(stream[0])
    mgem = next(plugin for plugin in plugins if isinstance(plugin, MGEMPlugin))
    mgem.memory.closed_groups()[-1].batch[0][0, 0] = bad
    return strategy, stream[1], state_of(strategy)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("names", [["mgem"], ["mgem update"], ["migu update", "mgem update"]])
def test_a_memory_row_that_is_not_finite_skips_every_step(names, bad):
    plugins = [PLUGINS[name]("skip") for name in names]
    strategy, experience, before = after_one_task_with_a_bad_memory(plugins, bad)
    strategy.train(experience)
    assert differing(before, state_of(strategy)) == set()
    assert [plugin.skipped_steps for plugin in plugins] == [6] * len(plugins)


@pytest.mark.parametrize(("name", "group"), [("mgem", 1), ("mgem update", 0)])
def test_the_error_names_the_memory_row(name, group):
    strategy, experience, before = after_one_task_with_a_bad_memory([PLUGINS[name]("raise")], NAN)
    row = rf"the memory row of task 0, group {group} holds NaN or Inf in '0.weight'"
    with pytest.raises(FloatingPointError, match=rf"{row}, in experience 1, iteration 0"):
        strategy.train(experience)
    weights = {name for name, _ in strategy.model.named_parameters()}
    assert not differing(before, state_of(strategy)) & weights


def test_a_reservoir_names_its_row_too():
    rows = torch.zeros(4, 3)
    rows[3, 2] = INF
    named = row_reason(rows, {"a": slice(0, 2), "b": slice(2, 3)}, [2, 1])
    assert named == "the memory row of the open task, group 0 holds NaN or Inf in 'b'"
    assert row_reason(rows[:3], {"a": slice(0, 3)}, [2, 1]) is None


def trained(setting, *plugins):
    strategy = make_strategy(make_model(setting), plugins, optimizer=OPTIMIZERS["adamw"])
    return parameter_vector(train(strategy, SETTINGS[setting][1]().train_stream[:2]).model)


@pytest.mark.parametrize("setting", ["batch norm", "a head a task", "growing head"])
def test_where_all_is_finite_nothing_changes_by_a_bit(setting):
    ours = MIGUPlugin(0.0, skip_tasks=0, on_nonfinite="skip")
    other = HybridMagnitudePlugin("initialized", on_nonfinite="skip")
    assert torch.equal(trained(setting, ours, other), trained(setting))


@pytest.mark.parametrize("name", ["mgem", "mgem update"])
def test_where_all_is_finite_to_skip_is_as_to_raise_to_the_bit(name):
    skip, error = PLUGINS[name]("skip"), PLUGINS[name]("raise")
    assert torch.equal(trained("batch norm", skip), trained("batch norm", error))
    assert skip.skipped_steps == 0


class SideBranch(nn.Module):
    """A layer whose outputs are NaN and go nowhere."""

    def __init__(self):
        super().__init__()
        self.side, self.main = nn.Linear(N_FEATURES, 4), nn.Linear(N_FEATURES, 8)
        self.classifier = nn.Linear(8, N_CLASSES)

    def forward(self, x):
        self.side(x * NAN)
        return self.classifier(torch.relu(self.main(x)))


@pytest.mark.parametrize("order", [1, -1])
def test_a_score_that_is_no_number_skips_the_step_too(order):
    plugins = [MIGUPlugin(0.5, on_nonfinite="skip"), PLUGINS["mgem"]("skip")][::order]
    strategy = make_strategy(SideBranch(), plugins)
    stream = domain_stream().train_stream
    strategy.train(stream[0])
    before = parameter_vector(strategy.model)
    strategy.train(stream[1])
    assert torch.equal(parameter_vector(strategy.model), before)
    assert [plugin.skipped_steps for plugin in plugins] == [3, 3]
    strategy = make_strategy(SideBranch(), [MIGUPlugin(0.5, skip_tasks=0)])
    with pytest.raises(FloatingPointError, match=r"a score is NaN.*, in experience 0, iteration 0"):
        strategy.train(stream[0])


@pytest.mark.parametrize("name", PLUGINS)
def test_gradients_are_left_to_a_strategy_that_says_so_and_losses_are_not(name):
    plugin = PLUGINS[name]("raise")
    # As a gradient scaler: it takes no step where a gradient is not finite.
    scaler = Call(before_update=lambda s: s.clock.train_iterations == 4 and s.optimizer.zero_grad())
    poison = Poison("inf")
    strategy = make_strategy(make_model("batch norm"), [poison, plugin, scaler])
    strategy.handles_nonfinite = True
    train(strategy, domain_stream().train_stream[:2])
    assert plugin.skipped_steps == 0
    assert all(p.isfinite().all() for p in strategy.model.parameters())
    assert poison.changed[4] <= STATISTICS
    strategy.plugins[0] = Poison("loss", at=(7,))
    with pytest.raises(FloatingPointError, match=KINDS["loss"]):
        strategy.train(domain_stream().train_stream[2])


@pytest.mark.parametrize("reference", ["end", "start"])
def test_a_probe_that_is_not_finite_is_named_or_lets_everything_train(reference):
    def strategy(how):
        plugin = HybridMagnitudePlugin(reference=reference, on_nonfinite=how, threshold=-1.0)
        model = make_model("batch norm")
        # The probe's passes, and they alone, are outside of an iteration's forward pass.
        inside = []
        model.register_forward_hook(lambda m, a, output: output if inside else output * NAN)
        poison = Call(before_forward=inside.append, after_forward=lambda s: inside.clear())
        return make_strategy(model, [poison, plugin]), plugin

    with pytest.raises(FloatingPointError, match=r"compared by holds NaN or Inf in '.*', in"):
        train(strategy("raise")[0], domain_stream().train_stream)
    skipping, plugin = strategy("skip")
    train(skipping, domain_stream().train_stream)
    assert plugin.last_decision.trained == plugin.last_decision.modules
    assert plugin.last_decision.similarity is None
    assert plugin.skipped_probes == 3
    assert plugin.skipped_steps == 0


def test_the_metric_counts_by_experience_and_a_step_once():
    plugins = [PLUGINS["migu"]("skip"), PLUGINS["hybrid"]("skip")]
    poison, seen = Poison("nan", at=(0, 3, 5)), []
    strategy = make_strategy(make_model("batch norm"), [poison, *plugins])
    (metric,) = skipped_steps_metrics()
    logger = SimpleNamespace(log_metrics=seen.extend)
    evaluator = EvaluationPlugin(metric, loggers=[logger])
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = evaluator
    strategy.evaluator = evaluator
    train(strategy, domain_stream().train_stream)
    named = {(value.name, value.x_plot): value.value for value in seen}
    name = "SkippedSteps/train_phase/train_stream"
    assert list(named.values()) == [1, 2, 0]
    assert {found for found, _ in named} == {name}
    assert metric.result() == {"SkippedSteps": 3.0}
    assert type(seen[0].value) is int  # which TensorBoard takes for a scalar


def test_a_peer_that_reads_gradients_after_the_step_finds_zeros():
    peers = [PLUGINS["migu"]("skip"), SynapticIntelligencePlugin(0.1)]
    strategy, poison = poisoned("nan", peers, at=(1, 4))
    assert not poison.changed[4]
    assert all(p.isfinite().all() for p in strategy.model.parameters())
    importances = peers[1].ewc_data[1].values()
    assert all(importance.data.isfinite().all() for importance in importances)


@pytest.mark.parametrize("name", ["mgem", "migu", "hybrid"])
def test_a_copy_keeps_the_count_and_nothing_of_the_step(name):
    plugin, copies = PLUGINS[name]("skip"), []
    peek = Call(
        after_backward=lambda s: copies.extend(
            [copy.deepcopy(plugin), pickle.loads(pickle.dumps(plugin))]
        )
    )
    poisoned("loss", [plugin, peek], at=(0,), experiences=1)
    assert [each.skipped_steps for each in copies] == [0, 0, 1, 1, 1, 1]
    assert all(each.on_nonfinite == "skip" and not each._guard._losses for each in copies)


def test_an_error_in_the_midst_of_a_step_leaves_nothing_to_the_next_training():
    plugin = PLUGINS["migu"]("raise")
    poison = Poison("loss", at=(1,))
    strategy = make_strategy(make_model("batch norm"), [poison, plugin])
    experience = domain_stream().train_stream[0]
    with pytest.raises(FloatingPointError):
        strategy.train(experience)
    poison.at, poison.changed = (), []
    strategy.train(experience)
    assert [bool(changed) for changed in poison.changed] == [True] * 3


@pytest.mark.parametrize("name", PLUGINS)
def test_another_word_than_raise_or_skip_is_refused(name):
    with pytest.raises(ValueError, match=r"on_nonfinite: unknown 'skp'; did you mean 'skip'"):
        PLUGINS[name]("skp")


class Fake(SimpleNamespace):
    """As much of a strategy as a guard sees."""

    def __init__(self, optimizer=SGD, **options):
        model = nn.Linear(2, 1)
        clock = SimpleNamespace(train_exp_counter=3, train_exp_iterations=8)
        super().__init__(
            model=model,
            optimizer=optimizer(model.parameters(), lr=0.1, **options),
            plugins=[],
            experience=SimpleNamespace(),
            clock=clock,
            device="cpu",
            loss=torch.zeros(1),
        )

    def backward(self, factor=1.0):
        self.loss = self.model(torch.ones(1, 2)).sum() * factor
        self.loss.backward()


@pytest.mark.parametrize("bad", [0, 1])
def test_iterations_that_share_a_step_are_skipped_together(bad):
    strategy, guard = Fake(), StepGuard("skip")
    for iteration in range(2):
        guard.open(strategy)
        strategy.backward()
        strategy.loss = strategy.loss + (NAN if iteration == bad else 0.0)
        guard.add_loss(strategy)
    assert not guard.allows(strategy)
    assert strategy.model.weight.grad is None
    guard.close()
    guard.open(strategy)
    strategy.backward()
    guard.add_loss(strategy)
    assert guard.allows(strategy)
    assert guard.skipped_steps == 1


def test_what_another_process_finds_is_refused_by_all(monkeypatch):
    monkeypatch.setattr(nonfinite, "n_processes", lambda: 2)
    monkeypatch.setattr(nonfinite, "add_up", lambda bad: bad.add_(1.0))
    strategy, guard = Fake(), StepGuard("raise")
    strategy.backward()
    guard.open(strategy)
    with pytest.raises(FloatingPointError, match="another process has NaN or Inf, in experience 3"):
        guard.allows(strategy)


def sparse(positions, values):
    return torch.sparse_coo_tensor([positions], values, (4,), check_invariants=True)


FINITE = {
    "nothing": [],
    "empty": [torch.empty(0), torch.empty(2, 0)],
    "squares overflow": [torch.full((5,), 3e38), torch.ones(1)],
    "float16": [torch.full((9,), 6e4, dtype=torch.float16)],
    "bfloat16": [torch.full((9,), 3e38, dtype=torch.bfloat16)],
    "float64": [torch.full((3,), 1e300, dtype=torch.float64), torch.ones(2)],
    "sparse": [sparse([0, 0], torch.ones(2))],
    "strided": [torch.ones(4, 6).t()[::2]],
}


@pytest.mark.parametrize("kind", FINITE)
def test_finite_numbers_are_told_from_others(kind):
    tensors = FINITE[kind]
    assert all_finite(tensors)
    for index, value in itertools.product(range(len(tensors)), (NAN, INF, -INF)):
        if tensors[index].numel():
            bad = tensors[index].to_dense().clone()
            bad[-1] = value
            if tensors[index].is_sparse:
                bad = sparse([0, 1, 2, 3], bad)
            assert not all_finite([*tensors[:index], bad, *tensors[index + 1 :]])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize(
    "kind", [torch.Tensor.to_sparse_csr, lambda value: value.to(torch.float8_e5m2)]
)
def test_so_they_are_in_rare_tensors(kind):
    assert all_finite([kind(torch.eye(2))])
    assert not all_finite([kind(torch.tensor([[1.0, INF], [0.0, 1.0]]))])


@pytest.mark.parametrize("large", [NAN, INF, -INF, 1e30, -1e30])
def test_a_lone_number_of_its_kind_is_small_by_its_size(large):
    others = [torch.ones(4, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)]
    assert have_small_products([torch.tensor(-1.0), *others])
    assert not have_small_products([torch.tensor(large), *others])


def test_what_was_seen_is_not_kept_for_the_rest_of_the_step():
    kept = []
    plugin = MIGUPlugin(0.5, skip_tasks=0)
    strategy = make_strategy(
        make_model(), [plugin, Call(before_update=lambda s: kept.append(plugin._guard._seen))]
    )
    train(strategy, domain_stream().train_stream[:1])
    assert kept
    assert set(kept) == {None}


@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_snapshot_puts_an_optimiser_back_to_the_bit(make):
    options = {"momentum": 0.9} if make is SGD else {"weight_decay": 0.1}
    strategy = Fake(make, **options)
    for steps in (0, 2):
        for _ in range(steps):
            strategy.backward()
            strategy.optimizer.step()
        before = state_of(strategy)
        snapshot = OptimizerSnapshot(strategy.optimizer)
        strategy.backward(factor=1e30)
        strategy.optimizer.step()
        strategy.optimizer.param_groups[0]["lr"] = 7.0
        assert differing(before, state_of(strategy))
        snapshot.restore()
        assert differing(before, state_of(strategy)) == set()
        assert strategy.optimizer.param_groups[0]["lr"] == 0.1


def test_a_step_that_overflows_is_undone_whole():
    """restrict="update": loss, gradients and memory are finite, the optimiser's step is not."""
    plugin = MGEMPlugin(6, restrict="update", seed=0, on_nonfinite="skip")
    strategy = make_strategy(make_model(), [plugin], optimizer=OPTIMIZERS["sgd"])
    stream = class_stream().train_stream
    strategy.train(stream[0])
    before = state_of(strategy)
    strategy.optimizer.param_groups[0].update(lr=1e38, weight_decay=1e3)
    strategy.train(stream[1])
    assert differing(before, state_of(strategy)) == set()
    assert plugin.skipped_steps == 3
