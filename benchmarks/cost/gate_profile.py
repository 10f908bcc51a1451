"""Where the time of a training step with the gate goes, part by part."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from typing import Any

import numpy as np
from avalanche.training.supervised import Naive
from gate_setting import Training, Variant
from rich.table import Table

# method of the strategy: what the gate does in it
PARTS = {
    "_before_forward": "look up the layers, put hooks on them",
    "forward": "read the outputs",
    "_after_forward": "choose the rows",
    "backward": "gradients of kept rows alone",
    "_before_update": "look for NaN and Inf, mask, hold rows",
    "optimizer_step": "step kept rows alone",
    "_after_update": "forget the step",
}


class _Parts:
    """The milliseconds of the CPU of each part, and a class of strategies that notes them."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, list[float]] = defaultdict(list)
        self.kind: Any = type("Naive", (Naive,), {name: self._timed(name) for name in PARTS})

    def _timed(self, name: str) -> Any:
        own = getattr(Naive, name)

        @functools.wraps(own)  # as a method of Avalanche's, which is known to read no gradient
        def timed(strategy: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            result = own(strategy, *args, **kwargs)
            self.taken[name].append(1e3 * (time.thread_time() - start))
            return result

        return timed


def profile(model: str, variants: list[Variant], rounds: int, iterations: int) -> Table:
    """Return a table of the parts of a step, medians in ms, of each variant and of a plain step."""
    variants = [Variant(), *variants]
    parts = {variant: _Parts() for variant in variants}
    trainings = {v: Training(model, v, iterations, kind=parts[v].kind) for v in variants}
    for number in range(rounds + 1):
        for variant in variants:
            if number == 1:  # the first was the first task
                parts[variant].taken.clear()
            trainings[variant].seconds()
    shown = Table(title=f"{model}: ms of a step")
    for heading in ("", "what the gate does", *(variant.name for variant in variants)):
        shown.add_column(heading)
    medians = {v: {name: np.median(parts[v].taken[name]) for name in PARTS} for v in variants}
    for name, what in PARTS.items():
        plain = medians[variants[0]][name]
        gated = (f"{m:.3f} ({m - plain:+.3f})" for m in (medians[v][name] for v in variants[1:]))
        shown.add_row(name.strip("_"), what, f"{plain:.3f}", *gated)
    return shown
