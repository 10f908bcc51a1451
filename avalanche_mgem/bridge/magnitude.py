"""Which modules of a model train on a task, and how far: what a plugin and a callback share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import finite, one_of, positive_int
from avalanche_mgem.bridge.decisions import (
    Magnitude,
    Rule,
    checked_decay,
    step_factors,
    step_magnitude,
)
from avalanche_mgem.bridge.finite import all_finite
from avalanche_mgem.bridge.nonfinite import place
from avalanche_mgem.bridge.optimizers import optimizers_of
from avalanche_mgem.bridge.probes import GradientProbe
from avalanche_mgem.bridge.shaped_step import ShapedStep
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.blocks import Blocks, Modules, find_blocks, own_modules
from avalanche_mgem.model.distributed import unwrapped
from avalanche_mgem.model.freezing import Freezer
from avalanche_mgem.model.heads import Heads, HeadWatch, own_heads
from avalanche_mgem.restriction.similarity import Decision, Metric, Schedule, check_metric

Mode = Literal["adaptive", "frozen", "initialized", "decay"]
Granularity = Literal["model", "module"]


class ChoosesMagnitude:
    """Freezes the modules that a decision leaves out, and scales the steps of the others.

        self._factors = self._factors_of(decision, blocks)      # when a task starts
        self._freeze_modules(model, self._left_out(decision), blocks)
        self._begin_step(strategy)                              # before the step
        self._step.end()                                        # after it
        self._freezer.thaw(model)                               # when the task ends

    Args: as those of `avalanche_mgem.HybridMagnitudePlugin`.

    Attributes:
        last_decision: what trains, and why; None before training.

    Raises:
        ValueError: an argument out of range.
    """

    magnitude: Magnitude | None

    def __init__(
        self,
        mode: Mode,
        *,
        threshold: float,
        low: int,
        high: int | None,
        schedule: Schedule,
        granularity: Granularity,
        modules: Modules,
        heads: Heads,
        metric: Metric,
        probe_batches: int,
        magnitude_decay: float | None,
        low_magnitude: float,
        magnitude: Magnitude | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.mode = one_of("mode", mode, ("adaptive", "frozen", "initialized", "decay"))
        self.threshold = finite("threshold", threshold)
        self.low = positive_int("low", low, minimum=0)
        self.high = None if high is None else positive_int("high", high)
        self.schedule = cast(Schedule, one_of("schedule", schedule, ("hard", "graded")))
        self.granularity = one_of("granularity", granularity, ("model", "module"))
        self.modules = own_modules(modules)
        self.heads = own_heads(heads)
        check_metric(metric)
        self.metric: Metric = metric
        self._rule()  # what does not go together is told now
        self.magnitude_decay, self.low_magnitude = checked_decay(
            mode, magnitude_decay, low_magnitude, magnitude
        )
        self.magnitude = magnitude
        if seed is not None:
            positive_int("seed", seed, minimum=0)
        sequence = np.random.SeedSequence(torch.initial_seed() if seed is None else seed)
        self._probe = GradientProbe(probe_batches, int(sequence.generate_state(1)[0]))
        self._freezer = Freezer()
        self._step = ShapedStep()
        self._heads_seen = HeadWatch()
        self._heads_known: tuple[str, ...] | None = None  # by the last task that has ended
        self._watches = False  # for the next forward pass to show the heads
        self.last_decision: Decision | None = None
        self._earlier: dict[str, Tensor] = {}  # g_{t-1}
        self._ended = 0
        self._factors: dict[str, float] = {}  # of steps, by parameter, where they are not one

    @property
    def _trains_all(self) -> bool:
        return self.mode in ("initialized", "decay")

    @property
    def _scales(self) -> bool:
        return self.magnitude is not None or self.magnitude_decay > 0.0 or self.low_magnitude > 0.0

    def thaw(self, model: nn.Module) -> None:
        """Put back what a task has frozen, as its end does."""
        self._freezer.thaw(model)

    def _rule(self) -> Rule:
        by_module = self.granularity == "module"
        return Rule(self.metric, self.threshold, self.low, self.high, self.schedule, by_module)

    def _blocks(self, model: nn.Module) -> Blocks:
        blocks = find_blocks(model, self.modules, heads=self.heads, seen_heads=self._heads_known)
        if self._trains_all:
            return blocks
        for argument, value in (("low", self.low), ("high", self.high)):
            if value is not None and value > len(blocks.names):
                raise ValueError(
                    f"{argument}={value} is more than the model has modules, which are "
                    f"{len(blocks.names)}: {', '.join(blocks.names)}"
                )
        if self.low == 0 and not blocks.heads:
            raise ValueError("low=0 trains the output heads alone, and the model has none to train")
        return blocks

    def _decision(
        self, blocks: Blocks, gradient: dict[str, Tensor], behind: str | None, *, is_first: bool
    ) -> Decision:
        """Decide what trains.

        Args:
            blocks: the modules.
            gradient: g_t, where it is compared.
            behind: the output head that g_t and g_{t-1} were taken behind.
            is_first: whether no task has ended, so that everything trains.
        """
        names = blocks.names
        if is_first or self._trains_all:
            return Decision(None, {}, names, names)
        if self.mode == "frozen":
            return Decision(None, {}, names[: self.low], names)
        return self._rule().decide(blocks, gradient, self._earlier, behind)

    def _left_out(self, decision: Decision) -> set[str]:
        """The modules that are frozen by a decision."""
        return set(decision.modules) - {*decision.trained} if self.low_magnitude == 0.0 else set()

    def _freeze_modules(
        self, model: nn.Module, frozen: Collection[str], blocks: Blocks
    ) -> list[str]:
        """Freeze modules, and return the names of their parameters."""
        parameters: list[str] = []
        for name in blocks.names:
            if name in frozen:
                self._freezer.freeze(model, blocks.parameters[name], blocks.statistics[name])
                parameters += blocks.parameters[name]
        return parameters

    def _factors_of(self, decision: Decision, blocks: Blocks) -> dict[str, float]:
        """What the steps of parameters are multiplied by, where that is not one."""
        if not self._scales:
            return {}
        task, similarity = self._ended + 1, decision.similarity
        high = step_magnitude(task, similarity, self.magnitude_decay, self.magnitude)
        return step_factors(decision, blocks, high, self.low_magnitude)

    def _begin_step(self, strategy: Strategy) -> None:
        """Remember what the step is shortened from, and what it must not move."""
        model = unwrapped(strategy.model)
        scaled: list[tuple[nn.Parameter, float]] = []
        if self._factors:
            named = model.named_parameters()
            scaled = [(p, self._factors[name]) for name, p in named if name in self._factors]
        self._step.begin(optimizers_of(strategy), self._freezer.frozen(model), scaled)


def probed_names(blocks: Blocks) -> list[str]:
    """Return the names of the parameters whose gradients are compared."""
    return [name for module in blocks.parameters.values() for name in module]


def why_not_finite(gradient: Mapping[str, Tensor], strategy: Strategy) -> str | None:
    """Return where a gradient that tasks are compared by is not finite; None: it is."""
    if all_finite(gradient.values()):
        return None
    bad = next(name for name, value in gradient.items() if not all_finite([value]))
    return (
        f"the gradient that tasks are compared by holds NaN or Inf in {bad!r}, in {place(strategy)}"
    )
