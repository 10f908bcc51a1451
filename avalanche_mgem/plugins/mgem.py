"""Fine-grained gradient episodic memory as a plugin."""

from __future__ import annotations

from typing import Any, Literal

import torch
from avalanche.training.plugins import SupervisedPlugin

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.bridge.beside import refuse_before_projections, refuse_beside_packnet
from avalanche_mgem.bridge.boundaries import task_boundary
from avalanche_mgem.bridge.changes import watch_minibatch
from avalanche_mgem.bridge.classes import class_targets
from avalanche_mgem.bridge.collation import Transform, collate_of
from avalanche_mgem.bridge.distributed import samples_a_step
from avalanche_mgem.bridge.fields import MemoryFormat
from avalanche_mgem.bridge.forward import require_loss_of_past
from avalanche_mgem.bridge.generalization import GeneralizationProbe
from avalanche_mgem.bridge.memory import EpisodicMemory, Selection, Split
from avalanche_mgem.bridge.nonfinite import OnNonFinite
from avalanche_mgem.bridge.restricting import RestrictsByMemory, seeds_of
from avalanche_mgem.bridge.rows import BatchNorm, MemoryPrecision, MemoryRows, Passes
from avalanche_mgem.bridge.samples import require_samples
from avalanche_mgem.bridge.size import check_size, rows_of_stream
from avalanche_mgem.bridge.still import HoldsStill
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.strength import require_polyak
from avalanche_mgem.bridge.trial import require_positions, try_memory
from avalanche_mgem.bridge.watch import Action, Order
from avalanche_mgem.model.distributed import require_whole_parameters, unwrapped
from avalanche_mgem.model.lazy import uninitialized
from avalanche_mgem.model.partition import ParameterGroups, Unassigned, restricted_parameters
from avalanche_mgem.restriction import DualSolver, PolyakStrength, Schedule
from avalanche_mgem.restriction.rounds import Ridge


class MGEMPlugin(RestrictsByMemory, SupervisedPlugin):
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
        seeds = seeds_of(seed)
        if generalization_every is not None:
            positive_int("generalization_every", generalization_every)
            if memory_selection == "ring":
                raise ValueError(
                    "generalization_every needs memory_selection 'random' or 'class-balanced', "
                    "which can tell what the memory does not hold"
                )
        super().__init__(
            memory=EpisodicMemory(
                patterns_per_experience,
                groups=memory_groups,
                split=memory_split,
                selection=memory_selection,
                transform=memory_transform,
                device=memory_device,
                memory_format=memory_format,
                held_out=generalization_every is not None,
                seed=seeds[0],
            ),
            rows=MemoryRows(
                passes=memory_passes,
                batch_size=memory_batch_size,
                refresh_every=refresh_every,
                batchnorm=memory_batchnorm,
                precision=memory_precision,
                memory_format=memory_format,
                seed=seeds[1],
            ),
            probe=GeneralizationProbe(generalization_every, seeds[2]),
            memory_strength=memory_strength,
            parameter_groups=parameter_groups,
            solver=solver,
            restrict=restrict,
            memory_strength_per=memory_strength_per,
            ridge=ridge,
            unassigned_parameters=unassigned_parameters,
            unused_parameters=unused_parameters,
            max_row_bytes=max_row_bytes,
            on_nonfinite=on_nonfinite,
        )
        self.supports_distributed = True
        self._experience = -1
        self._boundaries_known = True
        self._waits_for_shapes = False  # of lazy layers, to check partition and size

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
        groups = self.memory.closed_groups()
        if not self._boundaries_known:
            groups = groups + self.memory.open_groups()
        experience, iteration = max(self._experience, 0), strategy.clock.train_iterations
        self._compute_rows(strategy, groups, experience=experience, iteration=iteration)

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
        if self._guard.allows(strategy):
            self._start_step(strategy)

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Project the step that the optimiser took (restrict="update")."""
        if not self._guard.skips:
            self._restrict_step(strategy)
        self._undo = None
        self._guard.close()

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
        self._end_experience()

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
