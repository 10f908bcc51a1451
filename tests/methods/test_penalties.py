"""Synaptic intelligence against the paper, and a teacher of LwF that stays as it was."""

import copy

import pytest
import torch
from avalanche.training import supervised
from run_cases import permuted, specification
from tiny import (
    N_CLASSES,
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

from avalanche_mgem import MGEMPlugin, MIGUPlugin
from avalanche_mgem.methods.penalties import (
    LwF,
    LwFPlugin,
    SynapticIntelligence,
    SynapticIntelligencePlugin,
)

# Avalanche's synaptic intelligence passes tensors to NumPy's functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.3),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "nesterov": lambda model: torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True
    ),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.5),
}


def intelligence(si_lambda, experiences=3, **options):
    torch.manual_seed(0)
    strategy = make_strategy(
        make_model(), strategy=SynapticIntelligence, si_lambda=si_lambda, train_epochs=3, **options
    )
    return train(strategy, permuted(0).train_stream[:experiences])


def importances(plugin):
    return torch.cat([data.data for data in plugin.ewc_data[1].values()])


def penalty_of(strategy):
    own = strategy._criterion(strategy.mb_output, strategy.mb_y)
    return (strategy.loss - own).item()


def test_synaptic_intelligence_finds_importances():
    found = importances(intelligence(0.0).plugins[0])
    assert found.max() > 0
    assert torch.isfinite(found).all()


class SlowIntelligence:
    """The paper's path integral and importances, in float64, with the authors' bound at 0."""

    def __init__(self, si_lambda, eps=1e-7, most=0.001):
        self.si_lambda, self.eps, self.most = si_lambda, eps, most
        self.importances, self.start = 0.0, None

    def begin(self, strategy):
        self.start, self.path = self.weights(strategy), 0.0

    def before(self, strategy):
        self.old = self.weights(strategy)

    def own_gradient(self, strategy):
        """Of the loss without the penalty, computed again."""
        loss = strategy._criterion(strategy.model(strategy.mb_x), strategy.mb_y)
        parts = torch.autograd.grad(loss, list(strategy.model.parameters()))
        self.gradient = torch.cat([part.flatten() for part in parts]).double()

    def after(self, strategy):
        self.path -= self.gradient * (self.weights(strategy) - self.old)

    def end(self, strategy):
        movement = self.weights(strategy) - self.start
        total = self.importances + self.path / (movement**2 + self.eps)
        self.importances = total.clamp(min=0)

    @staticmethod
    def weights(strategy):
        return parameter_vector(strategy.model).double()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("si_lambda", [0.0, 30.0])
def test_importances_are_the_path_integral_of_the_experiences_own_loss(si_lambda, optimizer):
    slow, penalties = SlowIntelligence(si_lambda), []

    def penalty(strategy):
        found = penalty_of(strategy)
        kept = torch.as_tensor(slow.importances).clamp(max=slow.most)
        moved = slow.weights(strategy) - slow.start
        penalties.append((found, float(si_lambda / 2 * (kept * moved**2).sum())))

    watch = Call(
        before_training_exp=slow.begin,
        before_training_iteration=slow.before,
        before_backward=lambda strategy: (penalty(strategy), slow.own_gradient(strategy)),
        after_training_iteration=slow.after,
        after_training_exp=slow.end,
    )
    strategy = make_strategy(
        make_model(),
        [watch],
        strategy=SynapticIntelligence,
        si_lambda=si_lambda,
        train_epochs=3,
        optimizer=OPTIMIZERS[optimizer],
    )
    train(strategy, domain_stream().train_stream)
    expected = slow.importances.clamp(max=slow.most).float()
    torch.testing.assert_close(importances(strategy.plugins[0]), expected, rtol=2e-3, atol=1e-5)
    for found, wanted in penalties:
        assert found == pytest.approx(wanted, rel=0.02, abs=1e-5)
    assert any(wanted > 1e-3 for _, wanted in penalties) == (si_lambda > 0)


@pytest.mark.cover
@pytest.mark.parametrize("si_lambda", [1.0, 1000.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_importances_and_penalty_are_never_negative(optimizer, si_lambda):
    penalties = []

    def note(strategy):
        penalties.append(penalty_of(strategy))

    strategy = make_strategy(
        make_model(),
        [Call(before_backward=note)],
        strategy=SynapticIntelligence,
        si_lambda=si_lambda,
        train_epochs=3,
        optimizer=OPTIMIZERS[optimizer],
    )
    for index, experience in enumerate(domain_stream(4).train_stream):
        torch.manual_seed(100 + index)
        strategy.train(experience)
        found = importances(strategy.plugins[0])
        assert ((found >= 0) & (found <= 0.001)).all()
    assert min(penalties) >= -1e-6  # the difference of two floats
    assert torch.isfinite(parameter_vector(strategy.model)).all()


def test_some_importances_would_have_been_negative():
    """Otherwise the tests above say nothing."""
    found = importances(intelligence(1.0, optimizer=OPTIMIZERS["adam"]).plugins[0])
    assert 0.02 < (found == 0).float().mean() < 0.9


@pytest.mark.parametrize(
    "behind",
    [
        lambda: MGEMPlugin(6, seed=0),
        lambda: MIGUPlugin(0.5, skip_tasks=0),
        lambda: Call(after_backward=lambda s: [p.grad.zero_() for p in s.model.parameters()]),
    ],
    ids=["mgem", "migu", "no gradient"],
)
def test_the_gradient_is_that_of_before_the_plugins_behind(behind):
    """What these do to the gradient is no part of the path integral, the step that follows is."""
    slow = SlowIntelligence(1.0)
    watch = Call(
        before_training_exp=slow.begin,
        before_training_iteration=slow.before,
        before_backward=slow.own_gradient,
        after_training_iteration=slow.after,
        after_training_exp=slow.end,
    )
    plugins = [SynapticIntelligencePlugin(1.0), watch, behind()]
    train(make_strategy(make_model(), plugins), domain_stream().train_stream)
    expected = slow.importances.clamp(max=slow.most).float()
    torch.testing.assert_close(importances(plugins[0]), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_synaptic_intelligence_trains_every_kind_of_model(setting):
    strategy = make_strategy(make_model(setting), strategy=SynapticIntelligence, si_lambda=1.0)
    train(strategy, SETTINGS[setting][1]().train_stream)
    assert torch.isfinite(parameter_vector(strategy.model)).all()
    assert importances(strategy.plugins[0]).max() > 0


def test_a_stronger_synaptic_intelligence_holds_the_weights():
    def moved(si_lambda):
        first, last = (parameter_vector(intelligence(si_lambda, n).model) for n in (1, 3))
        return float((last - first).norm())

    assert moved(1000.0) < 0.7 * moved(0.0)


def test_a_weight_for_each_experience_and_the_last_for_all_after():
    many, few = (parameter_vector(intelligence(x).model) for x in ([0.0, 9.0, 9.0], [0.0, 9.0]))
    assert torch.equal(many, few)
    assert not torch.equal(many, parameter_vector(intelligence(0.0).model))


class Noisy(nn.Module):
    """Dropout, batch normalisation, and noise of its own in training."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(N_FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, N_CLASSES)

    def forward(self, x):
        features = self.body(x)
        return self.head(features + torch.randn_like(features) * self.training)


TEACHERS = {
    "noisy": Noisy,
    "batch norm": lambda: make_model("batch norm"),
    "dropout": lambda: make_model("dropout"),
    "a head a task": lambda: make_model("a head a task"),
}


@pytest.mark.parametrize("model", TEACHERS)
@pytest.mark.parametrize("made", ["strategy", "plugin"])
def test_the_teacher_answers_as_the_finished_model_did(made, model):
    torch.manual_seed(3)
    student, seen = TEACHERS[model](), []
    stream = SETTINGS.get(model, SETTINGS["single head"])[1]().train_stream

    def look(strategy):
        teacher = lwf.lwf.prev_model
        if teacher is None:
            return
        seen.append(copy.deepcopy(teacher.state_dict()))
        assert not any(module.training for module in teacher.modules())
        assert strategy.model.training
        heads = [torch.zeros_like(strategy.mb_task_id)] if model == "a head a task" else []
        with torch.no_grad():
            once, again = (teacher(strategy.mb_x, *heads) for _ in range(2))
        assert torch.equal(once, again)

    plugins = [Call(after_backward=look)]
    if made == "strategy":
        strategy = make_strategy(student, plugins, strategy=LwF, alpha=1.0, temperature=2.0)
        lwf = strategy.plugins[0]
    else:
        lwf = LwFPlugin(1.0, 2.0)
        strategy = make_strategy(student, [lwf, *plugins])
    for experience in stream:
        before = copy.deepcopy(student.state_dict())
        seen.clear()
        strategy.train(experience)
        for state in seen:
            assert all(torch.equal(state[name], before[name]) for name in state)
    assert seen


def trained(strategy, setting):
    made = make_strategy(make_model(setting), strategy=strategy, alpha=1.0, temperature=2.0)
    return parameter_vector(train(made, SETTINGS[setting][1]().train_stream).model)


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_dropout_and_batch_norm_it_is_avalanches_to_the_bit(setting):
    ours, theirs = trained(LwF, setting), trained(supervised.LwF, setting)
    assert torch.equal(ours, theirs) == (setting not in ("dropout", "batch norm"))


@pytest.mark.parametrize(
    ("name", "formerly"),
    [
        ("si", "avalanche_mgem.experiment.baselines.SynapticIntelligence"),
        ("lwf", "avalanche.training.supervised.strategy_wrappers.LwF"),
        ("si+migu", "avalanche_mgem.experiment.baselines.SynapticIntelligencePlugin"),
        ("lwf+replay", "avalanche.training.plugins.lwf.LwFPlugin"),
    ],
)
def test_results_of_what_they_were_are_not_taken_for_theirs(name, formerly):
    described = specification(name).description()["strategy"]
    kinds = [described] if isinstance(described, str) else described
    assert formerly not in kinds
    assert any(formerly.rpartition(".")[2] == kind.rpartition(".")[2] for kind in kinds)
