"""mGEM and MIGU together: what MIGU holds still is no part of mGEM's problem."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from lookalikes import Mixture
from tiny import N_FEATURES, Call, domain_stream, make_strategy, parameter_vector, train
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_mgem import MGEMPlugin, MIGUPlugin
from avalanche_mgem.model.partition import make_partition

# Of a recurrent layer with a projection, the projection alone is gated.
pytestmark = pytest.mark.filterwarnings("ignore:.*trainable parameters are in layers that MIGU")

OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.2),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
}


def model():
    torch.manual_seed(7)
    layers = [nn.Linear(N_FEATURES, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 6))


def mixture():
    torch.manual_seed(7)
    parts = [nn.Linear(N_FEATURES, 8), Mixture(8), nn.ReLU(), Mixture(8, transposed=True)]
    return nn.Sequential(*parts, nn.Linear(8, 6))


class Attentive(nn.Module):
    """Features as tokens: parts of one parameter have masks of their own, and so have gates."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.embed = nn.ConvTranspose1d(2, 4, 1, groups=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 6)

    def forward(self, x):
        x = self.embed(x.view(len(x), 2, -1)).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.lstm(x)[0].mean(1))


MODELS = {"linear": model, "mixture": mixture, "attention": Attentive}


def vector(parameters):
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def harms(migu, optimizer="sgd", parameter_groups=1, make=model, **arguments):
    """Train with both; return the harm of each step to each memory row, in shares of the lengths.

    The rows are taken before either plugin has seen them, the step after both.
    """
    mgem = MGEMPlugin(
        12, 0.0, seed=0, parameter_groups=parameter_groups, ridge="relative", **arguments
    )
    before, found = {}, []

    def remember(strategy):
        before["theta"] = vector(strategy.model.parameters())
        before["rows"] = mgem._matrix.rows.clone()

    def measure(strategy):
        if mgem.last_projection is None:
            return
        step = before["theta"] - vector(strategy.model.parameters())
        for module in make_partition(strategy.model, parameter_groups).slices:
            at = torch.cat([torch.arange(s.start, s.stop) for s in module])
            for row in before["rows"][:, at]:
                size = float(row.norm() * step[at].norm())
                found.append(float(-(row @ step[at])) / size if size > 1e-12 else 0.0)

    # The rows are there after before_training_iteration; nobody has masked them by before_forward.
    plugins = [mgem, Call(before_forward=remember), migu, Call(after_update=measure)]
    strategy = make_strategy(make(), plugins, optimizer=OPTIMIZERS[optimizer], train_epochs=4)
    train(strategy, domain_stream().train_stream)
    assert len(found) > 30
    return found


@pytest.mark.cover
@pytest.mark.parametrize("score", ["output", "gradient", "weight", "random"])
@pytest.mark.parametrize("ungated", ["train", "freeze"])
@pytest.mark.parametrize(
    "arguments", [{}, {"parameter_groups": "layer"}, {"memory_groups": 3}], ids=str
)
def test_masked_gradients_stay_in_the_cone(arguments, ungated, score):
    migu = MIGUPlugin(0.6, score=score, ungated=ungated, seed=0)
    assert max(harms(migu, **arguments)) < 1e-4


@pytest.mark.parametrize("freeze", ["gradient", "update"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restricted_updates_stay_in_the_cone(optimizer, freeze):
    migu = MIGUPlugin(0.6, freeze=freeze)
    assert max(harms(migu, optimizer, restrict="update")) < 1e-4


@pytest.mark.parametrize("name", ["mixture", "attention"])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_layers_of_other_kinds_stay_in_the_cone(restrict, name):
    migu = MIGUPlugin(0.6, freeze="update")
    optimizer = "sgd" if restrict == "gradient" else "adamw"
    found = harms(migu, optimizer, make=MODELS[name], restrict=restrict)
    assert max(found) < 1e-4


class Unheard(SupervisedPlugin):
    """The same plugin, which does not say what it holds still."""

    def __init__(self, plugin):
        super().__init__()
        for event in ("before_training_exp", "before_forward", "after_forward"):
            setattr(self, event, getattr(plugin, event))
        self.before_update, self.after_update = plugin.before_update, plugin.after_update


def test_without_being_told_the_masked_gradient_leaves_the_cone():
    assert max(harms(Unheard(MIGUPlugin(0.6, score="random", seed=0)))) > 1e-2


@pytest.mark.parametrize("restrict", ["gradient", "update"])
@pytest.mark.parametrize("order", [1, -1])
def test_masked_rows_stay_still_to_the_bit_in_either_order(order, restrict):
    migu = MIGUPlugin(0.6, freeze="update")
    still = []

    def remember(strategy):
        before["weight"] = strategy.model[3].weight.detach().clone()

    def compare(strategy):
        if migu.last_mask is not None:
            masked = ~migu.last_mask["3"]
            still.append(torch.equal(before["weight"][masked], strategy.model[3].weight[masked]))

    before = {}
    plugins = [MGEMPlugin(12, 0.5, seed=0, restrict=restrict), migu][::order]
    watch = Call(before_training_iteration=remember, after_training_iteration=compare)
    strategy = make_strategy(model(), [*plugins, watch], optimizer=OPTIMIZERS["adamw"])
    train(strategy, domain_stream().train_stream)
    assert len(still) == 6
    assert all(still)


def test_with_nothing_masked_it_is_mgem_to_the_bit():
    ends = []
    for beside in ([], [MIGUPlugin(0.0, skip_tasks=0)]):
        plugins = [MGEMPlugin(12, 0.5, seed=0, memory_groups=2), *beside]
        strategy = train(make_strategy(model(), plugins), domain_stream().train_stream)
        ends.append(parameter_vector(strategy.model))
    assert torch.equal(*ends)


def test_rows_that_are_used_again_are_refused():
    plugins = [MGEMPlugin(12, refresh_every=3), MIGUPlugin()]
    with pytest.raises(ValueError, match="refresh_every must be 1 beside a plugin that holds"):
        make_strategy(model(), plugins).train(domain_stream().train_stream[0])
