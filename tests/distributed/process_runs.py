"""Tiny trainings that two processes do together, and one alone, and how they are compared."""

import torch
from avalanche.distributed import DistributedHelper
from avalanche.training.supervised import Naive
from lookalikes import Mixture
from tiny import (
    N_CLASSES,
    N_FEATURES,
    Call,
    Heads,
    domain_stream,
    make_strategy,
    parameter_vector,
)
from torch import nn, optim

from avalanche_mgem import (
    HybridMagnitudePlugin,
    MGEMPlugin,
    MIGUPlugin,
    with_gradient_accumulation,
)
from avalanche_mgem.model.distributed import (
    average_gradients,
    data_parallel,
    n_processes,
    process_index,
    unwrapped,
    values_of_all,
)

WHOLE_BATCH = 8


class Rewrapped(Naive):
    """Wraps its model anew where it has grown."""

    def model_adaptation(self, model=None):
        return data_parallel(super().model_adaptation(model))


Divided = with_gradient_accumulation(Rewrapped)


class Averaging(Naive):
    """Averages the gradients of a model that nobody wraps."""

    def backward(self):
        super().backward()
        average_gradients(self.model)


def deep():
    """Three layers, of which two are no head."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(N_FEATURES, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, N_CLASSES)
    )


def heads():
    torch.manual_seed(7)
    return Heads()


def experts():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Linear(N_FEATURES, 8), Mixture(8), nn.ReLU(), Mixture(8, transposed=True),
        nn.Linear(8, N_CLASSES),
    )  # fmt: skip


def sgd(model):
    return optim.SGD(model.parameters(), lr=0.1)


def momentum(model):
    return optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(model):
    return optim.AdamW(model.parameters(), lr=0.01)


class Branches(nn.Module):
    """Samples go through one of two layers; a part of a minibatch may need but one of them."""

    def __init__(self):
        super().__init__()
        self.body, self.sides = nn.Linear(N_FEATURES, 8), nn.ModuleList()
        self.sides.extend(nn.Linear(8, N_CLASSES) for _ in range(2))

    def forward(self, x):
        outputs = torch.zeros(len(x), N_CLASSES)
        for side, goes in zip(self.sides, (x[:, 0] > 0, x[:, 0] <= 0), strict=True):
            if goes.any():
                outputs[goes] = side(torch.relu(self.body(x[goes])))
        return outputs


def branches():
    torch.manual_seed(7)
    return Branches()


class Run:
    """One training: what it made of the model, and what the plugins did.

    plugins: () -> list; made with another initial seed in every process.
    wrap: "helper" (Avalanche's wrap_model, before the strategy is made), "anew" (Rewrapped),
    "group" (no wrapper, Averaging), "views" (gradients that are views of the wrapper's own buffers)
    "parts" (Rewrapped, in micro-batches of two) or "none".
    """

    def __init__(
        self,
        plugins,
        *,
        model=deep,
        stream=domain_stream,
        optimizer=sgd,
        wrap="helper",
        others=(),
        epochs=2,
        shuffle=False,
    ):
        torch.manual_seed(40 + process_index())
        made = plugins()
        self.plugins, self.noted = made, []
        watch = Call(after_update=self._note)
        model = model()
        if wrap == "helper" and n_processes() > 1:
            model = DistributedHelper.wrap_model(model)
        if wrap == "views":
            model = data_parallel(model, gradient_as_bucket_view=True)
        kinds = {"anew": Rewrapped, "group": Averaging, "parts": Divided}
        kind, divided = kinds.get(wrap, Naive), {"micro_batch_size": 2} if wrap == "parts" else {}
        self.strategy = make_strategy(
            model,
            [*others, *made, watch],
            optimizer=optimizer,
            strategy=kind,
            batch_size=WHOLE_BATCH // n_processes(),
            train_epochs=epochs,
            **divided,
        )
        stream = stream()
        for index, experience in enumerate(getattr(stream, "train_stream", stream)):
            # Only a wrapper hands out the first process's new heads.
            torch.manual_seed(100 + index + 50 * process_index() * (wrap != "group"))
            self.strategy.train(experience, shuffle=shuffle, eval_streams=[])

    def _note(self, strategy):
        """What the plugins have done in this step, in words that can be compared."""
        for plugin in self.plugins:
            if isinstance(plugin, MGEMPlugin) and plugin.last_projection is not None:
                self.noted.append(("violated", bool(plugin.last_projection.violated)))
            if isinstance(plugin, MIGUPlugin) and plugin.last_mask is not None:
                masks = {name: mask.tolist() for name, mask in plugin.last_mask.items()}
                self.noted.append(("mask", masks))
            if isinstance(plugin, HybridMagnitudePlugin):
                self.noted.append(("trained", list(plugin.last_decision.trained)))

    @property
    def vector(self):
        """The model's parameters."""
        return parameter_vector(self.strategy.model)

    @property
    def names(self):
        """The parameters' names."""
        return [name for name, _ in unwrapped(self.strategy.model).named_parameters()]


def mgem(patterns=12, **arguments):
    return lambda: [MGEMPlugin(patterns, **arguments)]


def migu(**arguments):
    return lambda: [MIGUPlugin(0.6, **arguments)]


def hybrid(**arguments):
    return lambda: [HybridMagnitudePlugin(low=1, probe_batches=2, **arguments)]


def gated(**arguments):
    return lambda: [MGEMPlugin(12, memory_groups=2, **arguments), MIGUPlugin(0.5)]


def all_three():
    return [
        HybridMagnitudePlugin(low=1, threshold=0.9, probe_batches=2),
        MGEMPlugin(12, parameter_groups="layer"),
        MIGUPlugin(0.5, freeze="update"),
    ]


def half_alone(cases, rank):
    """The trainings of one process, half of them in each; {name: Run}."""
    return {name: cases[name]() for name in list(cases)[rank::2]}


def all_equal(cases, alone):
    """What two processes make of each case, and how far that is from what one made of it."""
    equal = {}
    for name, case in cases.items():
        run = case()
        equal[name] = agreement(run) | {"one": None}
        if name in alone:
            one = alone[name]
            distance = (run.vector - one.vector).double().norm() / one.vector.double().norm()
            equal[name]["one"] = {
                "distance": float(distance),
                "names": run.names == one.names,
                "noted": run.noted == one.noted,
            }
    theirs = values_of_all({name: told["one"] for name, told in equal.items()})
    for name, told in equal.items():
        told["one"] = next(their[name] for their in theirs if their[name] is not None)
    return equal


def agreement(run):
    """Whether the two are the same to the bit, and what they have done."""
    told = values_of_all((run.vector, run.noted))
    return {
        "same": torch.equal(told[0][0], told[1][0]),
        "same_noted": told[0][1] == told[1][1],
        "noted": sorted({str(what) for what in run.noted}),
        "skipped": [plugin.skipped_steps for plugin in run.plugins],
    }
