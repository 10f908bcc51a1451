"""What two processes do together, and one process alone; each case is a few tiny trainings."""

import torch
from avalanche.benchmarks import split_online_stream
from avalanche.distributed import DistributedHelper
from avalanche.training.supervised import Naive
from lookalikes import Mixture
from tiny import (
    N_CLASSES,
    N_FEATURES,
    Call,
    Heads,
    class_stream,
    domain_stream,
    make_model,
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


def online():
    """Two tasks in pieces of one minibatch, without boundaries."""
    stream = domain_stream(2, 24).train_stream
    return split_online_stream(
        stream, experience_size=WHOLE_BATCH, shuffle=False, access_task_boundaries=False
    )


# Two processes with half of each minibatch are one with all of it.
EQUAL = {
    "mgem": lambda: Run(mgem()),
    "p-mgem": lambda: Run(mgem(parameter_groups="layer")),
    "d-mgem": lambda: Run(mgem(memory_groups=3)),
    "pd-mgem, approximate": lambda: Run(
        mgem(
            memory_groups=3,
            parameter_groups={"a": ["0.*"], "b": ["2.*", "4.*"]},
            solver="approximate",
        )
    ),
    "mgem, update": lambda: Run(mgem(restrict="update", memory_groups=3), optimizer=adamw),
    "mgem, loop and uneven parts": lambda: Run(mgem(11, memory_passes="loop", memory_groups=2)),
    "mgem, groups that are not divided": lambda: Run(mgem(6, memory_groups=2)),
    "mgem, drawn": lambda: Run(mgem(memory_batch_size=5)),
    "mgem, ring": lambda: Run(mgem(memory_selection="ring"), epochs=1),
    "mgem, refreshed seldom": lambda: Run(mgem(refresh_every=2)),
    "mgem, a head a task": lambda: Run(
        mgem(memory_groups=2),
        model=heads,
        stream=lambda: class_stream(task_labels=True),
        optimizer=momentum,
        wrap="anew",
    ),
    "mgem, growing head": lambda: Run(
        mgem(),
        model=lambda: make_model("growing head"),
        stream=class_stream,
        optimizer=momentum,
        wrap="anew",
    ),
    "mgem, plain group": lambda: Run(
        mgem(memory_groups=2),
        model=heads,
        stream=lambda: class_stream(task_labels=True),
        optimizer=momentum,
        wrap="group",
    ),
    "mgem, in parts": lambda: Run(mgem(memory_groups=3), model=branches, wrap="parts"),
    "migu, in parts": lambda: Run(migu(), wrap="parts"),
    "migu": lambda: Run(migu(), optimizer=momentum),
    "migu, update": lambda: Run(migu(freeze="update", target_modules=["0"]), optimizer=adamw),
    "migu, by gradient": lambda: Run(migu(score="gradient")),
    "migu, by weight": lambda: Run(migu(score="weight")),
    "migu, at random": lambda: Run(migu(score="random", ungated="freeze")),
    "migu, a head a task": lambda: Run(
        migu(),
        model=heads,
        stream=lambda: class_stream(task_labels=True),
        optimizer=momentum,
        wrap="anew",
    ),
    "migu, experts": lambda: Run(migu(freeze="update"), model=experts, optimizer=adamw),
    "migu, experts by gradient": lambda: Run(migu(score="gradient"), model=experts),
    "mgem + migu, experts": lambda: Run(gated(), model=experts),
    "hybrid": lambda: Run(hybrid(threshold=-0.05), optimizer=momentum),
    "hybrid, from the start": lambda: Run(hybrid(threshold=-0.05, reference="start")),
    "hybrid, by module": lambda: Run(hybrid(granularity="module", modules=["2*", "0*"])),
    "hybrid, frozen": lambda: Run(hybrid(mode="frozen"), optimizer=momentum),
    "mgem + migu": lambda: Run(gated()),
    "mgem + migu, update": lambda: Run(gated(restrict="update"), optimizer=momentum),
    "all three": lambda: Run(all_three, optimizer=momentum),
    "all three, bucket views": lambda: Run(all_three, optimizer=adamw, wrap="views"),
}


def cut_short(strategy):
    """The second process gets fewer samples in a minibatch."""
    if process_index() == 1:
        strategy.mbatch = [field[:3] for field in strategy.mbatch]


def spoil(strategy):
    """The second process's loss is NaN in some steps."""
    if process_index() == 1 and strategy.clock.train_iterations % 3 == 1:
        strategy.loss = strategy.loss * float("nan")


def uneven_stream():
    return domain_stream(3, 21)


SHORT = Call(before_training_iteration=cut_short)

# What one process cannot do alike; the two agree all the same.
AGREE = {
    "batch norm": lambda: Run(gated(), model=lambda: make_model("batch norm")),
    "dropout": lambda: Run(gated(), model=lambda: make_model("dropout")),
    # Avalanche deals out no experience that does not tell its task labels.
    "mgem, without boundaries": lambda: Run(mgem(memory_groups=2), stream=online, epochs=1),
    "data that two do not divide": lambda: Run(all_three, stream=uneven_stream, optimizer=adamw),
    "minibatches of other sizes": lambda: Run(all_three, others=[SHORT]),
    "shuffled, other global seeds": lambda: Run(all_three, optimizer=momentum, shuffle=True),
    "memories of their own": lambda: Run(mgem(memory_groups=2), stream=own_stream, wrap="group"),
    "NaN in one process": lambda: Run(
        lambda: [
            MGEMPlugin(12, on_nonfinite="skip"),
            MIGUPlugin(0.5, on_nonfinite="skip"),
            HybridMagnitudePlugin(threshold=0.9, on_nonfinite="skip"),
        ],
        others=[Call(before_backward=spoil)],
    ),
}


def own_stream():
    """Other samples in each process, as where a user has divided the data."""
    return domain_stream(3, 24 - 4 * process_index())


def refused(run):
    """What a case is refused with, in words."""
    try:
        run()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def unseen_head():
    """The wrapper does not know the heads that have come since."""
    Run(mgem(), model=heads, stream=lambda: class_stream(task_labels=True))


def without_unused():
    """A wrapper that takes no unused parameters."""
    Run(hybrid(), model=lambda: _only_used(deep()), wrap="none")


def _only_used(model):
    return nn.parallel.DistributedDataParallel(model) if n_processes() > 1 else model


REFUSED = {
    "not wrapped, mgem": lambda: Run(mgem(), wrap="none"),
    "not wrapped, migu": lambda: Run(migu(), wrap="none"),
    "not wrapped, hybrid": lambda: Run(hybrid(), wrap="none"),
    "other models": lambda: Run(mgem(), model=other_model, wrap="group"),
    "heads that came since": unseen_head,
    "no unused parameters": without_unused,
    "another number of groups": lambda: Run(
        lambda: [MGEMPlugin(12, memory_groups=2 + process_index())], wrap="helper"
    ),
}


def other_model():
    """Each process begins elsewhere."""
    model = deep()
    with torch.no_grad():
        model[2].bias += process_index()
    return model


def alone(rank):
    """One process's trainings, half of them in each."""
    return {name: EQUAL[name]() for name in list(EQUAL)[rank::2]}


def both(alone):
    """Every case in two processes; {"equal": ..., "agree": ..., "refused": ...}."""
    equal = {}
    for name, case in EQUAL.items():
        run = case()
        equal[name] = _agreement(run) | {"one": None}
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
    agree = {name: _agreement(case()) for name, case in AGREE.items()}
    return {
        "equal": equal,
        "agree": agree,
        "refused": {name: values_of_all(refused(case)) for name, case in REFUSED.items()},
    }


def _agreement(run):
    """Whether the two are the same to the bit, and what they have done."""
    told = values_of_all((run.vector, run.noted))
    return {
        "same": torch.equal(told[0][0], told[1][0]),
        "same_noted": told[0][1] == told[1][1],
        "noted": sorted({str(what) for what in run.noted}),
        "skipped": [plugin.skipped_steps for plugin in run.plugins],
    }
