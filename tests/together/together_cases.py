"""What may come together in a run: factors, and the run that a case {factor: level} asks for."""

import random

import numpy as np
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    ReplayPlugin,
)
from avalanche.training.supervised import Naive
from tiny import N_CLASSES, N_FEATURES, tiny_data
from torch import nn, optim

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.methods.penalties import LwFPlugin, SynapticIntelligencePlugin
from avalanche_mgem.streams import permuted_stream, split_stream

PEERS = {
    "alone": list,
    "replay": lambda: [ReplayPlugin(8)],
    "ewc": lambda: [EWCPlugin(1.0)],
    "lwf": lambda: [LwFPlugin()],
    "si": lambda: [SynapticIntelligencePlugin(0.1)],
}
BODIES = {
    "plain": lambda: [nn.Linear(N_FEATURES, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()],
    "batch norm": lambda: [
        nn.Unflatten(1, (1, 2, 3)),
        *(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8, 8), nn.ReLU()),
    ],
    "frozen part": lambda: [
        *(nn.Linear(N_FEATURES, 8).requires_grad_(False), nn.ReLU()),
        *(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()),
    ],
    "dropout": lambda: [
        *(nn.Linear(N_FEATURES, 8), nn.Dropout(0.3), nn.ReLU()),
        *(nn.Linear(8, 8), nn.ReLU()),
    ],
}
HEADS = {
    "one head": lambda: nn.Linear(8, N_CLASSES),
    "growing head": lambda: IncrementalClassifier(8, 2),
    "a head a task": lambda: MultiHeadClassifier(8, initial_out_features=2),
}
STREAMS = ["whole", "online", "without boundaries"]
EVENTS = ["one epoch", "two epochs", "eval an epoch", "eval an iteration", "early stopping"]


def _groups(model):
    head = [*model.head.parameters()]
    body = [*model.body.parameters()]
    return optim.SGD(
        [
            {"params": body, "lr": 0.1, "momentum": 0.9},
            {"params": head, "lr": 0.3, "weight_decay": 0.1},
        ],
        lr=0.1,
    )


OPTIMIZERS = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.2),
    "nesterov": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.02),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
    "adagrad": lambda m: optim.Adagrad(m.parameters(), lr=0.05),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5),
    "groups": _groups,
}
MOMENTS = [
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
]

# plugin -> settings -> arguments
MGEM = {
    "gradient": {"memory_groups": 2},
    "update": {"restrict": "update", "parameter_groups": "layer"},
    "other": {"memory_selection": "ring", "memory_batchnorm": "restore"},
}
MIGU = {
    "gradient": {},
    "update": {"freeze": "update", "ungated": "freeze"},
    "other": {"score": "random", "ungated": "freeze", "seed": 0},
}
HYBRID = {
    "gradient": {"threshold": -2.0},  # of tasks that are always alike one module trains
    "update": {"mode": "frozen"},
    "other": {"granularity": "module", "reference": "start"},
}
# The same with arguments that restrict nothing.
FREE_HYBRID = {
    "gradient": {"low": 2, "high": 2},
    "update": {"mode": "initialized"},
    "other": {"granularity": "module", "reference": "start", "threshold": 2.0},
}
FACTORS = {
    "plugins": ["mgem", "migu", "hybrid", "mgem+migu", "mgem+hybrid", "migu+hybrid", "all three"],
    "settings": [*MGEM],
    "place": ["first", "last"],
    "peer": [*PEERS],
    "body": [*BODIES],
    "head": [*HEADS],
    "stream": STREAMS,
    "events": EVENTS,
    "optimizer": [*OPTIMIZERS],
    "moment": MOMENTS,
    "copy": ["deepcopy", "pickle"],
}


def adagrad_begins_anew():
    """Whether Adagrad goes on after Avalanche has emptied its state, as it does for each task."""
    optimizer = optim.Adagrad([torch.zeros(1, requires_grad=True)])
    optimizer.state.clear()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


class Net(nn.Module):
    """A body and a head."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = nn.Sequential(*body), head

    def forward(self, x):
        return self.head(self.body(x))


class TaskNet(MultiTaskModule):
    """A body and a head for each task."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = nn.Sequential(*body), head

    def forward(self, x, task_labels):
        return self.head(self.body(x), task_labels)


def model_of(case):
    torch.manual_seed(7)
    made = TaskNet if case["head"] == "a head a task" else Net
    return made(BODIES[case["body"]](), HEADS[case["head"]]())


def experiences_of(case):
    """Pairs of a training experience and a test experience: three tasks, or two in four parts."""
    data = tiny_data(n_train=36, n_test=12)
    if case["head"] == "one head":
        stream = permuted_stream(data, n_experiences=3, train_per_experience=12, seed=0)
    else:
        labels = case["head"] == "a head a task"
        stream = split_stream(data, n_experiences=3, seed=0, task_labels=labels)
    both = zip(stream.train_stream, stream.test_stream, strict=True)
    if case["stream"] == "whole":
        return list(both)
    return [(part, test) for whole, test in list(both)[:2] for part in _parts(case, whole)]


def _parts(case, whole):
    known = case["stream"] == "online"
    parts = [*split_online_stream([whole], 6, seed=0, access_task_boundaries=known)]
    if case["head"] != "one head":  # Avalanche strips what these heads need to know
        for part in parts:
            part.classes_in_this_experience = sorted(part.dataset.targets.uniques)
            part.task_labels = whole.task_labels
    return parts


def plugins_of(case, *, free=False):
    """Our plugins of a case by their names; free: with arguments that restrict nothing.

    mGEM has none such: it restricts nothing as long as it has no memory.
    """
    made = {}
    settings, unknown = case["settings"], case["stream"] == "without boundaries"
    names = FACTORS["plugins"][:3] if case["plugins"] == "all three" else case["plugins"].split("+")
    for name in names:
        if name == "mgem":
            made[name] = MGEMPlugin(8, 0.5, seed=0, ridge="relative", **MGEM[settings])
        elif name == "migu":
            steps = {"skip_steps": 1 - free} if unknown else {"skip_tasks": 1 - free}
            made[name] = MIGUPlugin(0.0 if free else 0.5, **steps, **_migu(settings, free))
        else:
            every = {"decide_every": 1} if unknown else {}
            arguments = (FREE_HYBRID if free else HYBRID)[settings]
            made[name] = HybridMagnitudePlugin(seed=0, **every, **arguments)
    return made


def _migu(settings, free):
    return {k: v for k, v in MIGU[settings].items() if not (free and k == "ungated")}


class Rising(PluginMetric):
    """Evaluated before each epoch and after the last: 0, and 1 from the first epoch's end on."""

    def result(self):
        return None

    def reset(self):
        pass

    def after_eval(self, strategy):
        clock = strategy.clock
        value = float(clock.train_exp_epochs > 0)
        return [MetricValue(self, "Rising/eval_phase/test_stream", value, clock.train_iterations)]


def strategy_of(case, ours=(), last=()):
    """The run of a case with our plugins, before or behind its peer, and `last` behind all."""
    model = model_of(case)
    peers = PEERS[case["peer"]]()
    events = case["events"]
    arguments = {"train_epochs": 1 if events in ("one epoch", "eval an iteration") else 2}
    if events == "early stopping":
        peers.append(EarlyStoppingPlugin(1, "test_stream", "Rising"))
        arguments["train_epochs"] = 4
    if events not in ("one epoch", "two epochs"):
        mode = "iteration" if events == "eval an iteration" else "epoch"
        arguments.update(eval_every=1, peval_mode=mode)
    first = case["place"] == "first"
    return Naive(
        model=model,
        optimizer=OPTIMIZERS[case["optimizer"]](model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=6,
        eval_mb_size=12,
        plugins=[*ours, *peers, *last] if first else [*peers, *ours, *last],
        evaluator=EvaluationPlugin(Rising()),
        **arguments,
    )


def train(strategy, experiences, start=0):
    """Train on the experiences from `start` on; yield each one's index when it is over."""
    for index, (experience, evaluated) in enumerate(experiences):
        if index >= start:
            torch.manual_seed(100 + index)
            np.random.seed(index)
            random.seed(index)
            strategy.train(experience, eval_streams=[[evaluated]])
            yield index


def random_states():
    """The global ones."""
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()


def values_of(model):
    """All tensors of a model by their names, as copies."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def different(ours, theirs):
    """The names of tensors that are not the same to the bit."""
    both = {name for name in ours.keys() & theirs.keys() if torch.equal(ours[name], theirs[name])}
    return sorted((ours.keys() | theirs.keys()) - both)
