"""Tiny streams, models and runs for the tests."""

import copy

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_mgem.streams import ArrayData, permuted_stream, split_stream

N_FEATURES = 6
N_CLASSES = 6


def tiny_data(n_train=72, n_test=36):
    """A learnable problem: 6 features, 6 classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n_train + n_test) % N_CLASSES
    centres = torch.randn(N_CLASSES, N_FEATURES, generator=generator)
    x = centres[y] + 0.5 * torch.randn(len(y), N_FEATURES, generator=generator)
    return ArrayData("tiny", x[:n_train], y[:n_train], x[n_train:], y[n_train:])


def domain_stream(n_experiences=3, n_train=24):
    """Every experience has all classes, its own permutation of the features, task label 0."""
    return permuted_stream(
        tiny_data(), n_experiences=n_experiences, train_per_experience=n_train, seed=0
    )


def class_stream(task_labels=False):
    """Three experiences of two classes each."""
    return split_stream(tiny_data(), n_experiences=3, seed=0, task_labels=task_labels)


class Heads(MultiTaskModule):
    """A shared layer and a head for each task."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(N_FEATURES, 8)
        self.classifier = MultiHeadClassifier(8, initial_out_features=2)

    def forward(self, x, task_labels):
        return self.classifier(torch.relu(self.features(x)), task_labels)


def _mlp(*between):
    return nn.Sequential(nn.Linear(N_FEATURES, 8), *between, nn.ReLU(), nn.Linear(8, N_CLASSES))


def _partly_frozen():
    model = _mlp(nn.Linear(8, 8))
    model[1].requires_grad_(False)
    return model


def _growing():
    return nn.Sequential(nn.Linear(N_FEATURES, 8), nn.ReLU(), IncrementalClassifier(8, 2))


# name -> (model, stream) as factories
SETTINGS = {
    "single head": (_mlp, domain_stream),
    "batch norm": (lambda: _mlp(nn.BatchNorm1d(8)), domain_stream),
    "dropout": (lambda: _mlp(nn.Dropout(0.5)), domain_stream),
    "frozen part": (_partly_frozen, domain_stream),
    "growing head": (_growing, class_stream),
    "a head a task": (Heads, lambda: class_stream(task_labels=True)),
}


def make_model(setting="single head"):
    """The setting's model, the same every time."""
    torch.manual_seed(7)
    return SETTINGS[setting][0]()


def sgd(model, lr=0.3):
    return torch.optim.SGD(model.parameters(), lr=lr)


def make_strategy(model, plugins=(), *, optimizer=None, strategy=Naive, batch_size=8, **arguments):
    """A strategy that logs nothing."""
    return strategy(
        model=model,
        optimizer=sgd(model) if optimizer is None else optimizer(model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
        **arguments,
    )


def train(strategy, stream, first=0):
    """Train on the stream, each experience from its own seed."""
    for index, experience in enumerate(stream):
        if index >= first:
            torch.manual_seed(100 + index)
            strategy.train(experience)
    return strategy


def parameter_vector(model):
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def assert_equal_states(one, other):
    """Two state dicts are the same, to the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def relative_distance(a, b):
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())


class Call(SupervisedPlugin):
    """Call functions on events: Call(after_backward=function of the strategy)."""

    def __init__(self, **functions):
        super().__init__()
        for event, function in functions.items():
            setattr(self, event, lambda strategy, _f=function, **kwargs: _f(strategy))


def snapshot(model):
    """A deep copy of a model, for slow references."""
    return copy.deepcopy(model)
