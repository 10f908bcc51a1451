"""Modules that were moved: what was written before they were is still read.

Results and checkpoints name functions and classes by module. A run's key is made of such names, so
a class keeps the name that it was first described by; a checkpoint is unpickled by the name that
its class has now.
"""

from __future__ import annotations

# Now and formerly; of two that fit, the first. What ends with a dot stands for a whole package.
_MOVES = (
    ("avalanche_mgem.methods.combination", "avalanche_mgem.experiment.combining"),
    ("avalanche_mgem.methods.", "avalanche_mgem.experiment."),
    ("avalanche_mgem.streams.vision.", "avalanche_mgem.streams."),
    ("avalanche_mgem.streams.text.stream", "avalanche_mgem.streams.text"),
    ("avalanche_mgem.streams.text.", "avalanche_mgem.streams.text_"),
)
_NOW = {
    "avalanche_mgem.experiment.baselines": "avalanche_mgem.methods.baselines",
    "avalanche_mgem.experiment.combining": "avalanche_mgem.methods.combination",
    "avalanche_mgem.streams.text_batches": "avalanche_mgem.streams.text.batches",
    "avalanche_mgem.streams.text_lengths": "avalanche_mgem.streams.text.lengths",
}


def former_module(module: str) -> str:
    """Return the name by which results have always told a module of ours; others as they are."""
    for now, before in _MOVES:
        if module == now or (now.endswith(".") and module.startswith(now)):
            return before + module.removeprefix(now)
    return module


def present_module(module: str) -> str:
    """Return the name of the module that has what a checkpoint's `module` had."""
    return _NOW.get(module, module)


def present_name(name: str) -> str:
    """Return the full name of a class now, from that which a checkpoint tells."""
    module, dot, rest = name.rpartition(".")
    return f"{present_module(module)}{dot}{rest}"
