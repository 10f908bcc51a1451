"""What two processes do together, and one process alone; each case is a few tiny trainings."""

import torch
from avalanche.benchmarks import split_online_stream
from process_runs import (
    WHOLE_BATCH,
    Run,
    adamw,
    agreement,
    all_equal,
    all_three,
    branches,
    deep,
    experts,
    gated,
    half_alone,
    heads,
    hybrid,
    mgem,
    migu,
    momentum,
)
from tiny import Call, class_stream, domain_stream, make_model
from torch import nn

from avalanche_mgem import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
from avalanche_mgem.model.distributed import n_processes, process_index, values_of_all


def online():
    """Two tasks in pieces of one minibatch, without boundaries."""
    stream = domain_stream(2, 24).train_stream
    return split_online_stream(
        stream, experience_size=WHOLE_BATCH, shuffle=False, access_task_boundaries=False
    )


# Two processes with half of each minibatch are one with all of it.
EQUAL = {
    "mgem": lambda: Run(mgem()),
    "pd-mgem, approximate": lambda: Run(
        mgem(
            memory_groups=3,
            parameter_groups={"a": ["0.*"], "b": ["2.*", "4.*"]},
            solver="approximate",
        )
    ),
    "mgem, update": lambda: Run(mgem(restrict="update", memory_groups=3), optimizer=adamw),
    "mgem, loop and uneven parts": lambda: Run(mgem(11, memory_passes="loop", memory_groups=2)),
    "mgem, auto": lambda: Run(mgem(11, memory_strength="auto", memory_groups=2)),
    "mgem, groups that are not divided": lambda: Run(mgem(6, memory_groups=2)),
    "mgem, drawn": lambda: Run(mgem(memory_batch_size=5)),
    "mgem, ring": lambda: Run(mgem(memory_selection="ring"), epochs=1),
    "mgem, refreshed seldom": lambda: Run(mgem(refresh_every=2)),
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
    "migu": lambda: Run(migu(), optimizer=momentum),
    "migu, update": lambda: Run(migu(freeze="update", target_modules=["0"]), optimizer=adamw),
    "migu, by gradient": lambda: Run(migu(score="gradient")),
    "migu, by weight": lambda: Run(migu(score="weight")),
    "migu, at random": lambda: Run(migu(score="random", ungated="freeze")),
    "migu, experts by gradient": lambda: Run(migu(score="gradient"), model=experts),
    "mgem + migu, experts": lambda: Run(gated(), model=experts),
    "hybrid": lambda: Run(hybrid(threshold=-0.05), optimizer=momentum),
    "hybrid, from the start": lambda: Run(hybrid(threshold=-0.05, reference="start")),
    "hybrid, fitted head": lambda: Run(hybrid(threshold=-2.0, probe_head="ridge")),
    "hybrid, by module": lambda: Run(hybrid(granularity="module", modules=["2*", "0*"])),
    "hybrid, frozen": lambda: Run(hybrid(mode="frozen"), optimizer=momentum),
    "mgem + migu, update": lambda: Run(gated(restrict="update"), optimizer=momentum),
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
    """Trainings of one process."""
    return half_alone(EQUAL, rank)


def both(alone):
    """Every case in two processes; {"equal": ..., "agree": ..., "refused": ...}."""
    return {
        "equal": all_equal(EQUAL, alone),
        "agree": {name: agreement(case()) for name, case in AGREE.items()},
        "refused": {name: values_of_all(refused(case)) for name, case in REFUSED.items()},
    }
