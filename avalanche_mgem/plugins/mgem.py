"""Fine-grained gradient episodic memory as a plugin."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from avalanche_mgem.arguments import finite, one_of, positive_int
from avalanche_mgem.bridge.beside import refuse_before_projections, refuse_beside_packnet
from avalanche_mgem.bridge.boundaries import task_boundary
from avalanche_mgem.bridge.changes import watch_minibatch
from avalanche_mgem.bridge.classes import class_targets
from avalanche_mgem.bridge.collation import Transform, collate_of
from avalanche_mgem.bridge.distributed import samples_a_step
from avalanche_mgem.bridge.fields import MemoryFormat
from avalanche_mgem.bridge.finite import all_finite, row_reason, size_of
from avalanche_mgem.bridge.forward import require_loss_of_past
from avalanche_mgem.bridge.generalization import GeneralizationProbe
from avalanche_mgem.bridge.memory import EpisodicMemory, MemoryGroup, Selection, Split
from avalanche_mgem.bridge.nonfinite import GuardsSteps, OnNonFinite, StepGuard
from avalanche_mgem.bridge.optimizers import optimizers_of
from avalanche_mgem.bridge.rows import BatchNorm, MemoryPrecision, MemoryRows, Passes
from avalanche_mgem.bridge.samples import require_samples
from avalanche_mgem.bridge.size import check_size, rows_of_stream
from avalanche_mgem.bridge.still import HoldsStill, Still, held_still
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.strength import (
    NO_BOUNDS,
    Bounds,
    as_strength,
    rates_of_gradient,
    require_polyak,
)
from avalanche_mgem.bridge.trial import require_positions, try_memory
from avalanche_mgem.bridge.watch import Action, Order
from avalanche_mgem.model.distributed import (
    first_vector,
    require_whole_parameters,
    unwrapped,
)
from avalanche_mgem.model.gradients import GradientMatrix, positions, write_gradients
from avalanche_mgem.model.lazy import uninitialized
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


class MGEMPlugin(GuardsSteps, SupervisedPlugin):
    """Restrict every update so that it does no harm to the memory of past tasks.

    Runs on `before_training_iteration` (the gradients of the memory), on `after_backward` (the
    projection; on `before_update` and `after_update` with restrict="update") and on
    `after_training_exp` (the memory of the task that ends). What stands between them must neither
    add nor replace parameters. Source: "Fine-Grained Gradient Restriction" (arXiv 2410.00868) on
    Gradient Episodic Memory (arXiv 1706.08840).

    With one module and one group this is GEM, and equals Avalanche's GEMPlugin on the same memory
    (where some parameters are unused in a step: with unused_parameters="include").

    Several processes, the model in DistributedDataParallel: all keep the same memory, each computes
    the rows on its part of every group, the rows are averaged, and the first one's projection is
    that of all. See `avalanche_mgem.bridge.distributed`.

    Args:
        patterns_per_experience: samples kept of each task; where a stream has no task boundaries,
            the size of one reservoir.
        memory_strength: gamma >= 0, the lower bound of the dual variables (not a margin of the
            constraint), or a schedule, called with the 0-based `experience` (of a stream without
            task boundaries: sub-experience) and `iteration` of the run. It acts in modules with a
            violated row only. Undivided bounds with many groups can diverge, see
            `memory_strength_per`. Or "auto", which is `PolyakStrength()` (ours): at each iteration
            F / (lr ||s||^2), with F the loss on the memory, summed over past tasks, and s its
            gradient; so the push of the memory is a step of Polyak's size on F, whatever the
            learning rate (a schedule of it does not shorten the push). F comes from the memory's
            passes and costs no further one. The premise is that the memory's loss can come near
            zero; where it cannot (wrong labels, label smoothing, tasks that contradict each other)
            the push grows as s vanishes: give PolyakStrength(floor=...) or (maximum=...). Where F
            is not positive, gamma is zero. Under restrict="gradient" the optimiser must have a
            learning rate, and the size is that of plain SGD's step: with momentum or Adam take
            restrict="update", or a maximum.
        parameter_groups: p-mGEM: the modules that are restricted each on its own. An int (equal
            blocks), "layer", "tensor", {name: [patterns]} or a callable(model); see
            `avalanche_mgem.model.partition.make_partition`. The paper leaves the partition open.
        memory_groups: d-mGEM: the number of groups each task's memory is split into, a constraint
            each.
        solver: "exact" (PivotingSolver, with quadprog for few rows and where pivoting fails),
            "approximate" (the diagonal of the Gram matrix) or any DualSolver.
        restrict: "gradient" (as published; the guarantee holds for the step of plain SGD only) or
            "update" (ours): what the optimiser would do, (theta_before - theta_after) / lr, is
            projected, so the restriction holds to first order under momentum, Adam and weight
            decay. Where parameter groups have different learning rates, the projection is taken in
            the metric of the step, so that the constraint is on the step itself.
            An optimiser whose groups do not tell the size of its steps (no lr or lr=None, as
            Adafactor with relative steps; an lr that multiplies an estimated size, as Prodigy;
            LBFGS) has for its lr what makes the update as long as the gradient, see
            `avalanche_mgem.model.steps.StepRecorder`. Gradients that a step makes itself, by a
            closure (LBFGS) or between two parts (SAM), are projected each under "gradient", on the
            memory's gradients from the beginning of the iteration.
        memory_split: "random" (default) or "class"; the paper leaves it open.
        memory_selection: "random" (as Avalanche's GEMPlugin), "class-balanced" or "ring" (as GEM's
            code); see EpisodicMemory.
        memory_strength_per: "task" (default, ours: each row's bound is gamma * size of the group /
            size of its task's memory, which keeps the total push that of GEM) or "row" (gamma on
            every row).
        ridge: "auto" (1e-3 absolute, as GEM, with one module and one group; otherwise relative),
            "relative" or an absolute number > 0; see `avalanche_mgem.restriction.project`.
        unassigned_parameters: parameters that no pattern takes: "error", "free" or "module".
        unused_parameters: those that a step cannot move, such as the heads of other tasks (no
            gradient), frozen ones, and those that the optimiser has not or has at learning rate 0:
            "exclude" (default, ours: they are no part of the problem) or "include" (as Avalanche's
            GEMPlugin: their part of the solution is lost, and the constraint with it).
        memory_passes: how the memory's gradients are computed: "loop" (a forward and a backward
            pass for each group), "grouped" (one for many groups, for models of linear and pointwise
            layers; the same but for rounding) or "auto" (default: grouped where it can be, which is
            compared with the loop when the model's parts have changed).
        memory_batch_size: None (off), or how many samples of each group are drawn anew for each
            iteration (ours, an approximation: each row is a noisy estimate of its group's gradient,
            and the constraint holds for the samples drawn only).
        refresh_every: how many iterations the memory's gradients are used for before they are
            computed again (ours, an approximation if above 1: between, they are those of parameters
            that have moved on; at GEM's settings 2 costs little and 5 ruins training, see
            benchmarks/approximations.py).
        max_row_bytes: the most that the memory's gradients, the current one and its projection may
            take: K rows of P numbers of 4 bytes, or 2 with memory_precision="bf16", and two to
            three of 4 bytes (8 where a parameter is float64). None: what the device has. An
            experience that takes more is refused before training, and so is a stream whose last
            experience will.
        memory_batchnorm: the running statistics of normalisation layers in the memory's forward
            passes: "update" (as GEM), "restore", or "evaluate": the passes use them and leave them,
            so that a row is the gradient of the network as it is evaluated, however few samples a
            group has.
        memory_device: where the memory is kept; None: on the strategy's device.
        memory_transform: the transformations of the data set that the memory's samples are read
            through: "eval" (default, as Avalanche's GEMPlugin) or "train", where those of
            evaluation make no batch that the model can be trained on. Of an augmentation one
            outcome is kept for each sample, drawn from the plugin's own random numbers.
        memory_precision: of the memory's forward and backward passes: "float32" (the model's own
            dtypes, default) or "bf16" (ours: torch's autocast in bfloat16; on a processor without
            units for bfloat16, where that is several times slower, in float32, with a warning). In
            "bf16" the rows are kept in bfloat16 too, half the memory, unless a parameter is
            float64. A row is added up in float32 and rounded once, by at most 2^-8 of each number;
            it is the rounded rows that the update does no harm to. Products with them are as exact
            as before, and the dual problem is in float64.
        memory_format: the layout in which the memory's batches of images [N, C, H, W] are kept:
            "preserve" (as the collate function made them, default) or "channels_last" (ours), in
            which convolutions are faster on many devices; their results differ by rounding.
        generalization_every: None (off), or every how many iterations to measure how far the
            restriction generalises from the memory to the past tasks: the cosine of z with the
            gradient on a task's memory minus that on as many samples held out of the same task. It
            costs one more gradient a task and changes nothing about the run.
        seed: of the memory's selection, split, augmentation and memory_batch_size, and of dropout
            in its forward passes. None: torch's current initial seed. The global random states are
            never drawn from.
        on_nonfinite: a step with NaN or Inf in its loss, a gradient or a memory row: "raise" an
            error that names it, or "skip" it: no weight, no state of the optimiser and no running
            statistic changes by it; see `avalanche_mgem.bridge.nonfinite.StepGuard`. A memorised
            sample that gives NaN keeps all later steps from being taken. With restrict="update" the
            step is taken first and undone, for which "skip" copies the optimiser's state before
            each step; "raise" puts the parameters back.

    Attributes:
        last_projection: what the last iteration's projection did, its gradient left out; None where
            there was no memory yet. Measured when it is first read.
        last_memory_strength: gamma of the last iteration's projection; None where there was none.
        last_generalization: {0-based past task: cosine on the memory minus cosine on held-out
            samples} where the last iteration measured it, else empty.
        last_seconds: what the last iteration's parts took, by the clock on the wall: "memory" (the
            gradients of the memory; about nothing where they are used again) and "projection". A
            GPU may still be at work then.
        skipped_steps: how many steps were left out (on_nonfinite="skip").

    Raises:
        ValueError: an argument out of range, at construction. Before the first iteration: a
            partition that does not fit the model (of lazy layers, after the first forward pass);
            samples that make no batch to train on, or have no class where one is needed; a loss
            that says nothing about past tasks; a strategy without an optimiser, or of Avalanche's
            that this does not go together with (docs/combinations.md). Before the first step:
            another plugin changes minibatches or outputs on its events, where the memory's do
            not pass.
        RuntimeError: restrict="gradient", and an optimiser has moved by gradients that its step has
            made, without calling the hooks of torch's optimisers; a training loop has moved the
            parameters without calling this plugin.
        FloatingPointError: what is not finite (on_nonfinite="raise"); running statistics have seen
            the minibatch by then.
    """

    _change: Change | None = None
    _projection: Projection | None = None
    last_memory_strength: float | None = None

    def __init__(
        self,
        patterns_per_experience: int,
        memory_strength: float | Literal["auto"] | Schedule | PolyakStrength = 0.5,
        *,
        parameter_groups: ParameterGroups = 1,
        memory_groups: int = 1,
        solver: Literal["exact", "approximate"] | DualSolver = "exact",
        restrict: Literal["gradient", "update"] = "gradient",
        memory_split: Split = "random",
        memory_selection: Selection = "random",
        memory_strength_per: Literal["task", "row"] = "task",
        ridge: Literal["auto"] | Ridge = "auto",
        unassigned_parameters: Unassigned = "error",
        unused_parameters: Literal["exclude", "include"] = "exclude",
        memory_passes: Passes = "auto",
        memory_batch_size: int | None = None,
        refresh_every: int = 1,
        max_row_bytes: int | None = None,
        memory_batchnorm: BatchNorm = "update",
        memory_device: torch.device | str | None = None,
        memory_transform: Transform = "eval",
        memory_precision: MemoryPrecision = "float32",
        memory_format: MemoryFormat = "preserve",
        generalization_every: int | None = None,
        seed: int | None = None,
        on_nonfinite: OnNonFinite = "raise",
    ) -> None:
        super().__init__()
        self.supports_distributed = True
        self._guard = StepGuard(on_nonfinite)
        if seed is not None:
            positive_int("seed", seed, minimum=0)
        seeds = np.random.SeedSequence(torch.initial_seed() if seed is None else seed).spawn(3)
        if generalization_every is not None:
            positive_int("generalization_every", generalization_every)
            if memory_selection == "ring":
                raise ValueError(
                    "generalization_every needs memory_selection 'random' or 'class-balanced', "
                    "which can tell what the memory does not hold"
                )
        self.memory = EpisodicMemory(
            patterns_per_experience,
            groups=memory_groups,
            split=memory_split,
            selection=memory_selection,
            transform=memory_transform,
            device=memory_device,
            memory_format=memory_format,
            held_out=generalization_every is not None,
            seed=seeds[0],
        )
        self.memory_strength = as_strength(memory_strength)
        check_parameter_groups(parameter_groups)
        self.parameter_groups = parameter_groups
        self.solver = _solver(solver)
        self.restrict = one_of("restrict", restrict, ("gradient", "update"))
        self.memory_strength_per = one_of(
            "memory_strength_per", memory_strength_per, ("task", "row")
        )
        self.ridge = _ridge(ridge)
        self.unassigned_parameters: Unassigned = unassigned_parameters
        one_of("unassigned_parameters", unassigned_parameters, ("error", "free", "module"))
        self.unused_parameters = one_of(
            "unused_parameters", unused_parameters, ("exclude", "include")
        )
        self._rows = MemoryRows(
            passes=memory_passes,
            batch_size=memory_batch_size,
            refresh_every=refresh_every,
            batchnorm=memory_batchnorm,
            precision=memory_precision,
            memory_format=memory_format,
            seed=_number(seeds[1]),
        )
        if max_row_bytes is not None:
            positive_int("max_row_bytes", max_row_bytes)
        self.max_row_bytes = max_row_bytes
        self.last_generalization: dict[int, float] = {}
        self.last_seconds: dict[str, float] = {}
        self._probe = GeneralizationProbe(generalization_every, _number(seeds[2]))
        self._matrix = GradientMatrix()
        self._step = StepRecorder()
        self._undo: OptimizerSnapshot | None = None  # of the step that is being taken
        self._partitions = PartitionCache()
        self._names: list[str] = []  # of the parameters behind the matrix
        self._restricted = Partition((), (), 0)  # of those parameters
        self._bounds = NO_BOUNDS
        self._experience = -1
        self._boundaries_known = True
        self._waits_for_shapes = False  # of lazy layers, to check partition and size

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

    def after_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Refuse an experience without samples."""
        require_samples(strategy)

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Check partition, size and samples; open the memory of a task that starts."""
        require_whole_parameters(strategy.model, "MGEMPlugin")
        refuse_beside_packnet(strategy, self, "needs gradients on past tasks, and PackNet has none")
        if self.restrict == "gradient":
            refuse_before_projections(strategy, self, "restrict='update'")
        self.memory.agree()
        boundary = task_boundary(strategy.experience)
        self._boundaries_known = boundary.known
        if boundary.starts:
            self.memory.close_task()
        if boundary.starts or not boundary.known:
            self._experience += 1
        if self.memory.device is None:
            self.memory.device = strategy.device
        self._waits_for_shapes = bool(uninitialized(strategy.model))
        if not self._waits_for_shapes:
            self._check_model(strategy)
        if isinstance(self.memory_strength, PolyakStrength):
            require_polyak(strategy, self.memory_strength, of=self.restrict)
        beside = any(isinstance(plugin, HoldsStill) for plugin in strategy.plugins)
        if beside and self._rows.refresh_every > 1:
            raise ValueError(
                f"refresh_every must be 1 beside a plugin that holds other rows still at every "
                f"step, such as MIGUPlugin, got {self._rows.refresh_every}"
            )
        self._rows.start_experience()
        self._guard.start(strategy, self)
        self._check_samples(strategy, tries=boundary.starts or self._experience == 0)
        watch_minibatch(strategy)

    def before_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Compute one gradient for each group of the memory."""
        self._guard.open(strategy)
        self._change = self._projection = self.last_memory_strength = None
        self.last_seconds, self.last_generalization = {}, {}
        groups = self.memory.closed_groups()
        if not self._boundaries_known:
            groups = groups + self.memory.open_groups()
        self._set_bounds(groups, strategy.clock.train_iterations)
        if groups:
            with self._timed("memory"):
                self._fill_rows(strategy, groups)

    def after_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Project the gradient (restrict="gradient")."""
        self._guard.add_loss(strategy)
        if self._waits_for_shapes:
            self._waits_for_shapes = False
            self._check_model(strategy)
        if self.restrict == "update" or not self._bounds:
            return
        self._restrict_gradient(strategy)
        self._guard.acted()

    def before_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Skip a step that is not finite; remember where it begins (restrict="update")."""
        restricts = self.restrict == "gradient" and bool(self._bounds)
        again = Action(Order.PROJECT, self._restrict_again, argument="restrict='update'")
        self._guard.watch(strategy, *([again] if restricts else []))
        if not self._guard.allows(strategy):
            return
        if self.restrict == "update" and self._bounds:
            optimizers = optimizers_of(strategy)
            self._step.start(self._parameters(unwrapped(strategy.model)), optimizers)
            if self.on_nonfinite == "skip":
                self._undo = OptimizerSnapshot(*optimizers)

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Project the step that the optimiser took (restrict="update")."""
        if self.restrict == "update" and self._bounds and not self._guard.skips:
            with self._timed("projection"):
                self._restrict_step(strategy)
        self._undo = None
        self._guard.close()

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

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        """Begin a pass of the memory's ring over the experience (memory_selection="ring")."""
        dataset = strategy.experience.dataset
        self.memory.start_pass(dataset, collate_of(strategy.dataloader, dataset))

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Let the memory's ring keep in step (memory_selection="ring")."""
        self._guard.end(strategy, self.release_hooks)
        self.memory.advance(samples_a_step(strategy))

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Take samples of the experience; close the memory of a task that ends."""
        self._guard.end(strategy, self.release_hooks)
        dataset = strategy.experience.dataset
        self.memory.observe_dataset(dataset, collate_of(strategy.dataloader, dataset))
        if task_boundary(strategy.experience).ends:
            self.memory.close_task()
        self._bounds = NO_BOUNDS
        self._step.forget()

    def _restrict_step(self, strategy: Strategy) -> None:
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

    def _set_bounds(self, groups: list[MemoryGroup], iteration: int) -> None:
        self._bounds = Bounds(
            self.memory_strength,
            groups,
            per_task=self.memory_strength_per == "task",
            experience=max(self._experience, 0),
            iteration=iteration,
        )

    def _check_samples(self, strategy: Strategy, *, tries: bool) -> None:
        """Refuse what would fail when the task has been trained on."""
        require_loss_of_past(strategy)
        require_positions(strategy, "MGEMPlugin")
        if self.memory.needs_classes:
            class_targets(strategy.experience.dataset)
        if tries:
            try_memory(
                strategy,
                self.memory.transform,
                grouped=self._rows.passes == "grouped",
                draws=self._rows.draws_from(self.memory.largest_group),
            )

    def _check_model(self, strategy: Strategy) -> None:
        self._partition(unwrapped(strategy.model))
        self._check_size(strategy)

    def _check_size(self, strategy: Strategy) -> None:
        classes = getattr(strategy.experience, "classes_in_this_experience", ())
        added = self.memory.most_groups(len(classes)) + self._probe.rows_a_task
        closed = len(self.memory.closed_groups()) + len(self.memory) * self._probe.rows_a_task
        parameters = [p for _, p in restricted_parameters(unwrapped(strategy.model))]
        now = closed if self._boundaries_known else closed + added
        at_end = rows_of_stream(strategy.experience, closed, added)
        for rows, where in ((now, "this experience"), (at_end, "the stream's last experience")):
            check_size(rows, parameters, self.max_row_bytes, f"in {where}", half=self._rows.half)

    def _fill_rows(self, strategy: Strategy, groups: list[MemoryGroup]) -> None:
        named = restricted_parameters(unwrapped(strategy.model))
        self._names, parameters = [name for name, _ in named], [p for _, p in named]
        self._restricted = self._partition(unwrapped(strategy.model), named)
        held_out = self._probe.groups(self.memory, strategy.clock.train_iterations)
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


def _number(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1)[0])


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
