"""What a plugin that chooses modules decides with, from its arguments: which train, how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from avalanche_mgem.arguments import finite
from avalanche_mgem.model.blocks import Blocks
from avalanche_mgem.restriction.similarity import (
    Decision,
    Metric,
    Schedule,
    n_trained,
    similarities,
    trained_by_module,
)

Magnitude = Callable[..., float]


@dataclass(frozen=True)
class Rule:
    """How many modules train by the similarity of two gradients, and which.

    Args:
        metric: of the two gradients.
        threshold: of their similarity.
        low: how many train on a task that is like the last one.
        high: how many on one that is not; None: all.
        schedule: see `avalanche_mgem.restriction.similarity.n_trained`.
        by_module: whether each module has a similarity of its own.

    Raises:
        ValueError: low > high, or a graded schedule for modules that each train or not.
    """

    metric: Metric
    threshold: float
    low: int
    high: int | None
    schedule: Schedule
    by_module: bool

    def __post_init__(self) -> None:
        if self.high is not None and self.high < self.low:
            raise ValueError(f"high must be >= low, got low={self.low} and high={self.high}")
        if self.schedule == "graded" and self.by_module:
            raise ValueError(
                "schedule='graded' needs granularity='model': module by module, each trains or not"
            )

    def decide(
        self,
        blocks: Blocks,
        gradient: Mapping[str, Tensor],
        earlier: Mapping[str, Tensor],
        probe_head: str | None,
    ) -> Decision:
        """Compare the gradients of two tasks; where they have nothing in common, all train.

        Args:
            blocks: the modules.
            gradient: of this task, by the names of parameters.
            earlier: the same of the task before.
            probe_head: the output head that both were taken behind.
        """
        names = blocks.names
        overall, each = similarities(gradient, earlier, blocks.parameters, self.metric)
        if overall is None:
            return Decision(None, {}, names, names)
        high = len(names) if self.high is None else self.high
        if self.by_module:
            trained = trained_by_module(names, each, self.low, high, self.threshold)
        else:
            trained = names[: n_trained(overall, self.low, high, self.threshold, self.schedule)]
        return Decision(overall, each, trained, names, probe_head)


def checked_decay(
    mode: str, magnitude_decay: float | None, low_magnitude: float, magnitude: Magnitude | None
) -> tuple[float, float]:
    """Return the exponent p of t^-p and the magnitude of modules that do not train.

    Raises:
        ValueError: an argument out of range, or two that exclude each other.
    """
    usual = 0.5 if mode == "decay" else 0.0
    decay = finite(
        "magnitude_decay", usual if magnitude_decay is None else magnitude_decay, minimum=0.0
    )
    low = finite("low_magnitude", low_magnitude, minimum=0.0)
    if low > 1.0:
        raise ValueError(f"low_magnitude must be in [0, 1], got {low_magnitude!r}")
    if magnitude is not None and (isinstance(magnitude, type) or not callable(magnitude)):
        raise ValueError(f"magnitude must be None or a callable, got {magnitude!r}")
    if magnitude is not None and magnitude_decay is not None:
        raise ValueError("magnitude_decay and magnitude: only one of them can be given")
    return decay, low


def step_magnitude(
    task: int, similarity: float | None, decay: float, magnitude: Magnitude | None
) -> float:
    """Return what the steps of what trains are multiplied by in the `task`-th task.

    Raises:
        ValueError: a magnitude of the user's own that is no finite number >= 0.
    """
    if magnitude is None:
        return float(task**-decay)
    return finite("magnitude", magnitude(task=task, similarity=similarity), minimum=0.0)


def step_factors(decision: Decision, blocks: Blocks, high: float, low: float) -> dict[str, float]:
    """Return what the steps of parameters are multiplied by, by name, where that is not one.

    Args:
        decision: which modules train.
        blocks: the parameters of all modules.
        high: the magnitude of what trains.
        low: that of what does not.
    """
    by_module = {m: high if m in decision.trained else low for m in decision.modules}
    return {
        name: factor
        for module, factor in by_module.items()
        if factor != 1.0
        for name in blocks.parameters[module]
    }
