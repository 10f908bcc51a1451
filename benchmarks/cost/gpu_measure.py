"""Two variants on one device: their times in turns, and what each asks of the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from avalanche.training.plugins import GEMPlugin
from avalanche.training.supervised import Naive
from clock import Pairs, in_turns, pair_numbers
from cost_cases import RIDGE, Case
from gate_setting import Training, Variant
from gpu_clock import StepClock, mark, peak_mebibytes, seconds_between, start_peak, wait
from gpu_trace import Counts, SyncLines, Watch, told
from setting import (
    BATCH_SIZE,
    experience_of,
    make_baseline,
    make_ours,
    make_strategy,
    parameter_vector,
    relative_difference,
)
from whole_train import copied

from avalanche_mgem import with_mixed_precision
from avalanche_mgem.restriction import project


@dataclass(frozen=True)
class Effort:
    """How much is measured: pairs of turns of a case, unless they take longer than `seconds`."""

    pairs: int
    warm_up: int  # iterations of a turn that are not timed
    timed: int
    followed: int  # steps under the profiler
    seconds: float

    @property
    def iterations(self) -> int:
        """Those of a turn."""
        return self.warm_up + self.timed


FULL = Effort(pairs=7, warm_up=10, timed=20, followed=3, seconds=6.0)
TINY = Effort(pairs=2, warm_up=1, timed=2, followed=1, seconds=0.0)


class Side(Protocol):
    """One of two variants that are compared."""

    def turn(self, number: int) -> float:
        """Return the median seconds of a step in one turn."""

    def follow(self, step: Any, steps: int) -> None:
        """Make so many steps, after others, each in `with step():`."""


def compare(sides: dict[str, Side], device: torch.device, effort: Effort) -> dict[str, Any]:
    """Return the row of two sides, "ours" and "baseline"."""
    for side in sides.values():  # compiles, allocates, chooses algorithms
        side.turn(0)
    pairs = Pairs()
    for pair in pair_numbers(effort.pairs, effort.seconds):
        pairs.add(**{name: sides[name].turn(pair) for name in in_turns(pair)})
    row: dict[str, Any] = {**pairs.summary(), "timed": effort.timed, "warm_up": effort.warm_up}
    for name, side in sides.items():
        row |= {f"{key}_{name}": value for key, value in _asked(side, device, effort).items()}
    return row


def _asked(side: Side, device: torch.device, effort: Effort) -> dict[str, Any]:
    """What a side asks of the device, a step."""
    wait(device)
    before = start_peak(device)
    side.turn(0)
    peak = peak_mebibytes(device, before)
    counts = _counted(side, device, effort.followed)
    return {
        "peak_mib": peak,
        "launches": counts.launches,
        "copies": counts.copies,
        "synchronisations": counts.synchronisations,
        "reads": counts.reads,
        "waits_in": told(counts.operators),
        "waits_at": told(counts.lines),
    }


def _counted(side: Side, device: torch.device, steps: int) -> Counts:
    lines = SyncLines(device)
    side.follow(lines.step, steps)
    watch = Watch(device)
    watch.start()
    side.follow(watch.step, steps)
    wait(device)
    counts = watch.finish()
    counts.lines = lines.lines()
    return counts


def kind_of(precision: str) -> Callable[..., Naive]:
    """Return what makes a strategy in this precision: "float32" or "bf16" (torch's autocast)."""
    if precision == "float32":
        return Naive

    def make(**arguments: Any) -> Naive:
        strategy: Naive = with_mixed_precision(Naive)(precision=precision, **arguments)
        return strategy

    return make


class _MemorySide:
    """Trainings of the current task with one plugin, each from the same start."""

    def __init__(
        self, case: Case, plugin: Any, precision: str, device: torch.device, effort: Effort
    ) -> None:
        self._case, self._plugin, self._effort = case, plugin, effort
        self._kind, self._device = kind_of(precision), device
        self.ends: dict[int, torch.Tensor] = {}
        self.violated: list[bool] = []

    def turn(self, number: int) -> float:
        clock = StepClock(self._device, self._effort.warm_up)
        strategy, plugin = self._train(clock, self._effort.iterations, number)
        self.ends[number] = parameter_vector(strategy.model)
        if (last := getattr(plugin, "last_projection", None)) is not None:
            self.violated.append(last.violated)
        return clock.seconds()

    def follow(self, step: Any, steps: int) -> None:
        clock = StepClock(self._device, self._effort.warm_up)
        clock.follow(step, steps)
        self._train(clock, self._effort.warm_up + steps, 0)

    def _train(self, clock: StepClock, iterations: int, seed: int) -> tuple[Naive, Any]:
        plugin = copied(self._plugin)
        memories = len(plugin.memory_x) if isinstance(plugin, GEMPlugin) else self._case.tasks
        settings = {"kind": self._kind, "device": self._device}
        strategy = make_strategy(self._case, [clock, plugin], memories, **settings)
        torch.manual_seed(seed)
        strategy.train(experience_of(self._case, iterations * BATCH_SIZE))
        return strategy, plugin


def measure_step(
    case: Case, precision: str, device: torch.device, effort: Effort, *, host: bool = True
) -> dict[str, Any]:
    """Return the row of a training step with MGEMPlugin against one with GEMPlugin.

    GEMPlugin trains in float32 whatever the precision of ours: it knows no other. host: its
    patterns are in host memory, where it keeps them; else on the device, as ours are.
    """
    ours = make_ours(case, device)
    baseline = make_baseline(case, ours)
    if not host:
        for batches in (baseline.memory_x, baseline.memory_y, baseline.memory_tid):
            batches.update({task: part.to(device) for task, part in batches.items()})
    sides = {
        "ours": _MemorySide(case, ours, precision, device, effort),
        "baseline": _MemorySide(case, baseline, "float32", device, effort),
    }
    row = compare(sides, device, effort)
    violated = sides["ours"].violated
    if case.same_problem and precision == "float32":
        ends = zip(sides["ours"].ends.values(), sides["baseline"].ends.values(), strict=True)
        apart = torch.tensor([relative_difference(a, b) for a, b in ends])
        row["parameter_difference"] = float(apart.median())
    return row | {"violated": sum(violated) / len(violated)}


class _GateSide:
    """Trainings of one network that goes on from turn to turn."""

    def __init__(
        self, model: str, variant: Variant, precision: str, device: torch.device, effort: Effort
    ) -> None:
        self._clock = StepClock(device, effort.warm_up)
        options = {"kind": kind_of(precision), "device": device, "watch": [self._clock]}
        self._training = Training(model, variant, effort.iterations, **options)
        self._training.seconds()  # the first task

    def turn(self, number: int) -> float:
        self._clock.restart()
        self._training.seconds()
        return self._clock.seconds()

    def follow(self, step: Any, steps: int) -> None:
        self._clock.follow(step, steps)
        self._training.seconds()
        self._clock.restart()


def measure_gate(
    model: str, variant: Variant, precision: str, device: torch.device, effort: Effort
) -> dict[str, Any]:
    """Return the row of a training step with MIGU's gate against the plain step."""
    sides: dict[str, Side] = {
        name: _GateSide(model, each, precision, device, effort)
        for name, each in (("ours", variant), ("baseline", Variant()))
    }
    return compare(sides, device, effort)


class _CallSide:
    """Calls of a function."""

    def __init__(self, function: Callable[[], Any], device: torch.device, effort: Effort) -> None:
        self._function, self._device, self._effort = function, device, effort

    def turn(self, number: int) -> float:
        start = mark(self._device)
        for _ in range(self._effort.timed):
            self._function()
        end = mark(self._device)
        wait(self._device)
        return seconds_between(start, end) / self._effort.timed

    def follow(self, step: Any, steps: int) -> None:
        for _ in range(steps):
            with step():
                self._function()


def measure_projection(
    rows: int, columns: int, device: torch.device, effort: Effort
) -> dict[str, Any]:
    """Return the row of the projection alone, against that of GEMPlugin; it takes float32."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(rows, columns, generator=generator).to(device)
    gradient = torch.randn(columns, generator=generator).to(device)
    baseline = GEMPlugin(1, 0.5)
    baseline.G = memory
    effort = replace(effort, timed=max(1, effort.timed // 4))
    sides: dict[str, Side] = {
        "ours": _CallSide(
            lambda: project(gradient, memory, memory_strength=0.5, ridge=RIDGE), device, effort
        ),
        "baseline": _CallSide(lambda: baseline.solve_quadprog(gradient).to(device), device, effort),
    }
    row = compare(sides, device, effort)
    ours = project(gradient, memory, memory_strength=0.5, ridge=RIDGE).gradient
    theirs = baseline.solve_quadprog(gradient).to(device)
    return row | {"gradient_difference": relative_difference(ours, theirs)}
