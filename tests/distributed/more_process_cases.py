"""Further cases that two processes do together, and one process alone, for the slow suite."""

from process_runs import (
    Run,
    adamw,
    all_equal,
    all_three,
    experts,
    gated,
    half_alone,
    heads,
    mgem,
    migu,
    momentum,
)
from tiny import class_stream

EQUAL = {
    "p-mgem": lambda: Run(mgem(parameter_groups="layer")),
    "d-mgem": lambda: Run(mgem(memory_groups=3)),
    "mgem, a head a task": lambda: Run(
        mgem(memory_groups=2),
        model=heads,
        stream=lambda: class_stream(task_labels=True),
        optimizer=momentum,
        wrap="anew",
    ),
    "migu, in parts": lambda: Run(migu(), wrap="parts"),
    "migu, a head a task": lambda: Run(
        migu(),
        model=heads,
        stream=lambda: class_stream(task_labels=True),
        optimizer=momentum,
        wrap="anew",
    ),
    "migu, experts": lambda: Run(migu(freeze="update"), model=experts, optimizer=adamw),
    "mgem + migu": lambda: Run(gated()),
    "all three": lambda: Run(all_three, optimizer=momentum),
}


def alone(rank):
    """Trainings of one process."""
    return half_alone(EQUAL, rank)


def both(alone):
    """Every case in two processes."""
    return {"equal": all_equal(EQUAL, alone), "agree": {}}
