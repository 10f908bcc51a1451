"""What a plugin and a callback of mGEM share: rows of the memory, and the restriction by them.

All of it reads the trainer as a `Strategy`, Avalanche's or what stands for one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import finite, one_of, positive_int
from avalanche_mgem.bridge.finite import all_finite, row_reason, size_of
from avalanche_mgem.bridge.generalization import GeneralizationProbe
from avalanche_mgem.bridge.memory import EpisodicMemory, MemoryGroup
from avalanche_mgem.bridge.nonfinite import GuardsSteps, OnNonFinite, StepGuard
from avalanche_mgem.bridge.optimizers import optimizers_of
from avalanche_mgem.bridge.rows import MemoryRows
from avalanche_mgem.bridge.still import Still, held_still
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.strength import NO_BOUNDS, Bounds, as_strength, rates_of_gradient
from avalanche_mgem.model.distributed import first_vector, unwrapped
from avalanche_mgem.model.gradients import GradientMatrix, positions, write_gradients
from avalanche_mgem.model.partition import (
    NamedParameters,
    ParameterGroups,
    Partition,
    PartitionCache,
    Unassigned,
    check_parameter_groups,
    restricted_parameters,
)
from avalanche_mgem.model.snapshot import OptimizerSnapshot
from avalanche_mgem.model.steps import StepRecorder, unmoved
from avalanche_mgem.model.walking import named_parameters
from avalanche_mgem.restriction import (
    DiagonalSolver,
    DualSolver,
    PivotingSolver,
    PolyakStrength,
    Projection,
    Schedule,
)
from avalanche_mgem.restriction.change import Change
from avalanche_mgem.restriction.polyak import PolyakBounds
from avalanche_mgem.restriction.rounds import Ridge

_GEM_RIDGE = 1e-3


class RestrictsByMemory(GuardsSteps):
    """Holds the memory's rows and restricts gradients, or steps, to their cone.

        self._compute_rows(strategy, groups, experience=0, iteration=0)  # before an iteration
        self._restrict_gradient(strategy)                                # after the backward pass
        self._start_step(strategy)                                       # before the step
        self._restrict_step(strategy)                                    # after it
        self._end_experience()

    Args:
        memory, rows, probe: of the class that derives from this one.
        others: as those of `avalanche_mgem.MGEMPlugin`.

    Raises:
        ValueError: an argument out of range.
    """

    _change: Change | None = None
    _projection: Projection | None = None
    last_memory_strength: float | None = None

    def __init__(
        self,
        *,
        memory: EpisodicMemory,
        rows: MemoryRows,
        probe: GeneralizationProbe,
        memory_strength: float | Literal["auto"] | Schedule | PolyakStrength,
        parameter_groups: ParameterGroups,
        solver: Literal["exact", "approximate"] | DualSolver,
        restrict: Literal["gradient", "update"],
        memory_strength_per: Literal["task", "row"],
        ridge: Literal["auto"] | Ridge,
        unassigned_parameters: Unassigned,
        unused_parameters: Literal["exclude", "include"],
        max_row_bytes: int | None,
        on_nonfinite: OnNonFinite,
    ) -> None:
        super().__init__()
        self._guard = StepGuard(on_nonfinite)
        self.memory, self._rows, self._probe = memory, rows, probe
        self.memory_strength = as_strength(memory_strength)
        check_parameter_groups(parameter_groups)
        self.parameter_groups = parameter_groups
        self.solver = _solver(solver)
        self.restrict = one_of("restrict", restrict, ("gradient", "update"))
        self.memory_strength_per = one_of(
            "memory_strength_per", memory_strength_per, ("task", "row")
        )
        self.ridge = _ridge(ridge)
        one_of("unassigned_parameters", unassigned_parameters, ("error", "free", "module"))
        self.unassigned_parameters: Unassigned = unassigned_parameters
        self.unused_parameters = one_of(
            "unused_parameters", unused_parameters, ("exclude", "include")
        )
        if max_row_bytes is not None:
            positive_int("max_row_bytes", max_row_bytes)
        self.max_row_bytes = max_row_bytes
        self.last_generalization: dict[int, float] = {}
        self.last_seconds: dict[str, float] = {}
        self._matrix = GradientMatrix()
        self._step = StepRecorder()
        self._undo: OptimizerSnapshot | None = None  # of the step that is being taken
        self._partitions = PartitionCache()
        self._names: list[str] = []  # of the parameters behind the matrix
        self._restricted = Partition((), (), 0)  # of those parameters
        self._bounds = NO_BOUNDS

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_projection": self.last_projection, "_change": None}

    @property
    def last_projection(self) -> Projection | None:
        """What the last iteration's projection did; measured when it is first asked for."""
        if self._change is not None:
            projection = self._change.projection(self._restricted.names)
            # The long vector may be the matrix's own memory.
            self._projection = dataclasses.replace(projection, gradient=torch.empty(0))
            self._change = None
        return self._projection

    def _compute_rows(
        self, strategy: Strategy, groups: list[MemoryGroup], *, experience: int, iteration: int
    ) -> None:
        """Compute one gradient for each group of the memory, of which there may be none."""
        self._change = self._projection = self.last_memory_strength = None
        self.last_seconds, self.last_generalization = {}, {}
        self._bounds = Bounds(
            self.memory_strength,
            groups,
            per_task=self.memory_strength_per == "task",
            experience=experience,
            iteration=iteration,
        )
        if groups:
            with self._timed("memory"):
                self._fill_rows(strategy, groups, iteration)

    def _start_step(self, strategy: Strategy) -> None:
        """Remember where a step begins (restrict="update")."""
        if self.restrict == "update" and self._bounds:
            optimizers = optimizers_of(strategy)
            self._step.start(self._parameters(unwrapped(strategy.model)), optimizers)
            if self.on_nonfinite == "skip":
                self._undo = OptimizerSnapshot(*optimizers)

    def _end_experience(self) -> None:
        self._bounds = NO_BOUNDS
        self._step.forget()

    def _restrict_again(self, strategy: Strategy, loss: Any) -> None:
        """Project a gradient that the step has made itself."""
        if not self._guard.skips:
            self._restrict_gradient(strategy)

    def _restrict_gradient(self, strategy: Strategy) -> None:
        try:
            if self._project_gradient(strategy, looks=True):
                self._guard.saw()
                return
        except FloatingPointError:
            pass  # the guard says of what
        if not self._guard.allows(strategy):
            return
        try:
            self._project_gradient(strategy)
        except FloatingPointError as error:
            self._guard.refuse(strategy, error, self._row_reason(strategy))

    def _project_gradient(self, strategy: Strategy, *, looks: bool = False) -> bool:
        """Project the gradient; return whether that was done.

        looks: also whether losses and all gradients are finite, in place of the guard. Not done
        where the guard must look.
        """
        parameters = self._parameters(unwrapped(strategy.model))
        held, optimizers = held_still(strategy, of="gradient"), optimizers_of(strategy)
        exclude = self.unused_parameters == "exclude"
        still = [
            name in held.parameters or (unmoves and exclude)
            for name, unmoves in zip(self._names, unmoved(parameters, optimizers), strict=True)
        ]
        gradients = [None if s else p.grad for p, s in zip(parameters, still, strict=True)]
        covered = self._covered(parameters, gradients, held)
        numbers = self._guard.outside(strategy, optimizers, covered)
        if looks and numbers is None:
            return False
        where, alongside = self._matrix.gradient.device, None
        if looks and numbers:
            if where.type != "cpu":  # what is waited for is waited for once
                alongside = size_of(numbers).reshape(1).to(where)
            elif not all_finite(numbers):
                return False
        with self._timed("projection"):
            asks = self._bounds.needs_rate
            rate = rates_of_gradient(strategy, parameters, where) if asks else 1.0
            bounds = self._bounds.at(self._rows, rate)
            projected = self._project(parameters, gradients, held, bounds, alongside)
            if projected is not None:
                write_gradients(parameters, projected, gradients)
        return True

    def _covered(
        self, parameters: list[nn.Parameter], vectors: list[Tensor | None], held: Still
    ) -> set[int]:
        """The parameters, by their ids, whose gradients are finite if the dot products are."""
        if held.rows or not self._restricted.is_whole:
            return set()
        return {
            id(parameter)
            for name, parameter, vector in zip(self._names, parameters, vectors, strict=True)
            if vector is not None and name not in held.parameters
        }

    def _restrict_step(self, strategy: Strategy) -> None:
        """Project the step that the optimiser took (restrict="update")."""
        if self.restrict == "update" and self._bounds:
            with self._timed("projection"):
                self._project_step(strategy)

    def _project_step(self, strategy: Strategy) -> None:
        parameters = self._parameters(unwrapped(strategy.model))
        update = self._step.finish(parameters)
        self._matrix.scale_rows(self._step.metric, parameters)
        try:
            held = held_still(strategy, of="update")
            bounds = self._bounds.at(self._rows, self._step.rate)
            projected = self._project(parameters, update, held, bounds)
        except FloatingPointError as error:
            self._step.undo(parameters)
            if self._undo is not None:
                self._undo.restore()
            self._guard.refuse(strategy, error, self._row_reason(strategy))
            return
        if projected is not None:
            self._step.redo(parameters, self._matrix.gradient, projected)

    def _row_reason(self, strategy: Strategy) -> str | None:
        columns = positions(self._parameters(unwrapped(strategy.model)))
        return row_reason(
            self._matrix.rows[: len(self._bounds)],
            dict(zip(self._names, columns, strict=True)),
            [len(groups) for groups in self.memory.closed_tasks()],
        )

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.last_seconds[part] = time.perf_counter() - start

    def _partition(self, model: nn.Module, named: NamedParameters | None = None) -> Partition:
        return self._partitions.get(model, self.parameter_groups, self.unassigned_parameters, named)

    def _parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters behind the matrix, whatever has been frozen since its rows were made."""
        named = dict(named_parameters(model))
        parameters = [named[name] for name in self._names if name in named]
        if sum(p.numel() for p in parameters) != self._matrix.gradient.numel():
            raise RuntimeError(
                "the model's parameters changed between the memory's gradients and the update; a "
                "plugin may freeze parameters there, but neither add nor replace them"
            )
        return parameters

    def _fill_rows(self, strategy: Strategy, groups: list[MemoryGroup], iteration: int) -> None:
        named = restricted_parameters(unwrapped(strategy.model))
        self._names, parameters = [name for name, _ in named], [p for _, p in named]
        self._restricted = self._partition(unwrapped(strategy.model), named)
        held_out = self._probe.groups(self.memory, iteration)
        self._matrix.fit(parameters, len(groups) + len(held_out), half=self._rows.half)
        rows = self._matrix.rows
        if self._rows.fill(strategy, groups, parameters, rows[: len(groups)]):
            self._matrix.rows_are_new()
        evaluated, half = self._rows.batchnorm == "evaluate", self._rows.half_passes(strategy)
        own = rows[len(groups) :]
        if self._probe.fill(strategy, held_out, parameters, own, evaluated=evaluated, half=half):
            self._matrix.scale_as_the_others(len(groups), parameters)

    def _project(
        self,
        parameters: list[nn.Parameter],
        vectors: list[Tensor | None],
        held: Still,
        bounds: Tensor | PolyakBounds,
        alongside: Tensor | None = None,
    ) -> Tensor | None:
        """Project and keep what it did; return the projected vector, or None if it is unchanged.

        bounds, alongside: as of `Cone.project`.
        """
        self._matrix.set_gradient(vectors, parameters)
        exclude = self.unused_parameters == "exclude"
        # What will not move must be no part of the problem: a solution that counts on it leaves the
        # cone as soon as the part of it that does not move is dropped.
        where = dict(zip(self._names, positions(parameters), strict=True))
        still = [
            columns
            for (name, columns), vector in zip(where.items(), vectors, strict=True)
            if name in held.parameters or (exclude and vector is None)
        ]
        if held.rows:
            shapes = dict(zip(self._names, (p.shape for p in parameters), strict=True))
            for name, dims, rows_held in held.rows:
                if name in where:
                    self._matrix.hold_still(where[name], shapes[name], dims, rows_held)
        is_gem = len(self._restricted.slices) == 1 and self.memory.groups == 1
        automatic: Ridge = _GEM_RIDGE if is_gem else "relative"
        cone = self._matrix.cone(
            len(self._bounds),
            self._partitions.moving(self._restricted, still),
            self.solver,
            automatic if self.ridge == "auto" else self.ridge,
        )
        self._projection = None
        self._change = cone.project(bounds, alongside=alongside)
        self.last_memory_strength = float(self._change.lower[0]) / self._bounds.weights[0]
        after = self._change.after
        if self._probe.measures:
            rows = self._matrix.rows
            self.last_generalization = self._probe.gaps(after, rows, self.memory, still)
        return first_vector(after if self._change.violated else None, like=self._matrix.gradient)


def seeds_of(seed: int | None) -> tuple[np.random.SeedSequence, int, int]:
    """Return the seeds of the memory, of its rows and of the probe; None: torch's initial seed.

    Raises:
        ValueError: `seed` is no integer >= 0.
    """
    if seed is not None:
        positive_int("seed", seed, minimum=0)
    memory, rows, probe = np.random.SeedSequence(
        torch.initial_seed() if seed is None else seed
    ).spawn(3)
    return memory, int(rows.generate_state(1)[0]), int(probe.generate_state(1)[0])


def _solver(solver: str | DualSolver) -> DualSolver:
    if callable(solver) and not isinstance(solver, str | type):
        return solver
    name = one_of("solver", solver, ("exact", "approximate"))
    return PivotingSolver() if name == "exact" else DiagonalSolver()


def _ridge(ridge: float | str) -> float | Literal["auto", "relative"]:
    if isinstance(ridge, str) and ridge in ("auto", "relative"):
        return ridge  # type: ignore[return-value]
    if isinstance(ridge, str):
        raise ValueError(f"ridge must be 'auto', 'relative' or a number > 0, got {ridge!r}")
    return finite("ridge", ridge, minimum=0.0, above=True)
