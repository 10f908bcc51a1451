"""mGEM as a callback of the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.bridge.generalization import GeneralizationProbe
from avalanche_mgem.bridge.memory import EpisodicMemory
from avalanche_mgem.bridge.restricting import RestrictsByMemory, seeds_of
from avalanche_mgem.bridge.rows import MemoryPrecision, MemoryRows
from avalanche_mgem.bridge.size import check_size
from avalanche_mgem.bridge.strength import require_polyak
from avalanche_mgem.bridge.trial import require_positions, try_memory
from avalanche_mgem.huggingface.calling import (
    calling_trainer,
    require_hook_before_step,
    require_whole_gradients,
)
from avalanche_mgem.huggingface.kept import KeepsArguments, from_text, to_text
from avalanche_mgem.huggingface.standing import TrainerStrategy
from avalanche_mgem.model.distributed import require_whole_parameters, unwrapped
from avalanche_mgem.model.gate_shown import ShowsGate
from avalanche_mgem.model.partition import ParameterGroups, Unassigned, restricted_parameters
from avalanche_mgem.restriction import DualSolver, PolyakStrength, Schedule
from avalanche_mgem.restriction.rounds import Ridge


class MGEMCallback(KeepsArguments, RestrictsByMemory, TrainerCallback, ExportableState):
    """Restrict every update so that it does no harm to the memory of past tasks.

    Example::

        mgem = MGEMCallback(64, memory_groups=4, memory_strength="auto", restrict="update")
        for dataset in tasks:
            Trainer(model, arguments, train_dataset=dataset, callbacks=[mgem]).train()

    What `avalanche_mgem.MGEMPlugin` is to Avalanche, on the same core: see there for the method
    (arXiv 2410.00868) and for the arguments. Each finished `train()` is a task, those of
    `hyperparameter_search` too, so hand one callback to all Trainers in turn.

    Runs on `on_step_begin` (the gradients of the memory), `on_pre_optimizer_step` (the projection;
    of the whole gradient, where it is accumulated), `on_optimizer_step` (the projection with
    restrict="update") and `on_train_end`: samples of the training data set, chosen by the
    callback's own random numbers, are made into batches by the Trainer's own collate function and
    kept on the CPU. In the first task nothing is done before that.

    A row is the gradient of the Trainer's own loss on a group's samples as one batch, by its
    `compute_loss`, in training mode, in the precision that it trains in, and without the division
    by gradient_accumulation_steps. Honoured are `label_smoothing_factor`, `compute_loss_func` and a
    `compute_loss` of your own. `num_items_in_batch` is that of the group for a `compute_loss_func`
    and None otherwise, with which models and label smoothing take the mean over the group's
    tokens. What a `training_step` of your own does is not seen. Trainers that log what
    `compute_loss` meets (TRL's SFTTrainer: entropy, accuracy, number of tokens) log the memory's
    passes with it. A group goes through the model at once: let patterns_per_task / memory_groups be
    about per_device_train_batch_size, or give a `memory_batch_size`.

    The Trainer clips gradients before `on_pre_optimizer_step`. So the gradient is projected as it
    is clipped, and the push of the memory is not clipped. On losses that the accumulation of
    transformers 5 makes too long see `MIGUCallback`.

    With LoRA the rows are as long as the adapters: parameters that do not require a gradient have
    no part in them. docs/trainer.md has their sizes.

    Several processes, as torchrun or accelerate start them, share the memory's passes, where the
    Trainer wraps the model in DistributedDataParallel.

    A Trainer's checkpoint keeps the memory, in `trainer_state.json`. A Trainer that resumes takes
    it up if it is given `restore_callback_states_from_checkpoint`; it then puts a callback of its
    own in the place of the one that it was handed. Otherwise call `load`.

    Args:
        patterns_per_task: samples kept of each task.
        others: as those of `avalanche_mgem.MGEMPlugin`. A schedule is called with the 0-based
            `experience`, the number of the task, and the `iteration`, that of the step over all
            tasks.

    Attributes:
        tasks: how many calls of `train()` have ended.
        steps: how many steps there have been, over all tasks.
        memory: the `EpisodicMemory`.
        last_projection, last_memory_strength, last_seconds: as those of the plugin.

    Raises:
        ValueError: an argument out of range, at construction. When training begins: a partition
            that does not fit the model, rows that do not fit into memory, samples that make no
            batch, a data set without positions, fp16=True, a MIGUCallback beside it, training on
            several GPUs by one process, or on sharded parameters.
        RuntimeError: parameters or gradients are not the same in all processes.
        FloatingPointError: a gradient or a memory row has NaN or Inf, from the second task on.
        ImportError: transformers is older than 4.45.
    """

    # The Trainer, while it trains: of a Strategy it has what gradients are measured by.
    _strategy: Any = None
    _packed: tuple[int, str] | None = None  # the memory as text, of so many tasks

    def __init__(
        self,
        patterns_per_task: int,
        memory_strength: float | Literal["auto"] | Schedule | PolyakStrength = 0.5,
        *,
        parameter_groups: ParameterGroups = 1,
        memory_groups: int = 1,
        solver: Literal["exact", "approximate"] | DualSolver = "exact",
        restrict: Literal["gradient", "update"] = "gradient",
        memory_strength_per: Literal["task", "row"] = "task",
        ridge: Literal["auto"] | Ridge = "auto",
        unassigned_parameters: Unassigned = "error",
        memory_batch_size: int | None = None,
        max_row_bytes: int | None = None,
        memory_precision: MemoryPrecision = "float32",
        seed: int | None = None,
    ) -> None:
        require_hook_before_step("MGEMCallback")
        self._arguments: dict[str, Any] = {
            "patterns_per_task": positive_int("patterns_per_task", patterns_per_task),
            "memory_strength": memory_strength,
            "parameter_groups": parameter_groups,
            "memory_groups": positive_int("memory_groups", memory_groups),
            "solver": solver,
            "restrict": restrict,
            "memory_strength_per": memory_strength_per,
            "ridge": ridge,
            "unassigned_parameters": unassigned_parameters,
            "memory_batch_size": memory_batch_size,
            "max_row_bytes": max_row_bytes,
            "memory_precision": memory_precision,
            "seed": seed,
        }
        if memory_groups > patterns_per_task:
            raise ValueError(
                f"memory_groups={memory_groups} needs at least {memory_groups} patterns per task, "
                f"got patterns_per_task={patterns_per_task}"
            )
        seeds = seeds_of(seed)
        super().__init__(
            memory=EpisodicMemory(
                patterns_per_task,
                groups=memory_groups,
                transform="train",  # collate functions draw from the memory's own random numbers
                device=torch.device("cpu"),
                seed=seeds[0],
            ),
            rows=MemoryRows(
                passes="loop",
                batch_size=memory_batch_size,
                refresh_every=1,
                batchnorm="update",
                precision=memory_precision,
                seed=seeds[1],
            ),
            probe=GeneralizationProbe(None, seeds[2]),
            memory_strength=memory_strength,
            parameter_groups=parameter_groups,
            solver=solver,
            restrict=restrict,
            memory_strength_per=memory_strength_per,
            ridge=ridge,
            unassigned_parameters=unassigned_parameters,
            unused_parameters="exclude",
            max_row_bytes=max_row_bytes,
            on_nonfinite="raise",
        )
        self.tasks = self.steps = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_strategy": None}

    def state(self) -> dict[str, Any]:
        """Return what a Trainer's checkpoint keeps of the callback."""
        return self._kept_state(tasks=self.tasks, steps=self.steps, kept=self.kept)

    @property
    def kept(self) -> str:
        """The memory and the random states, as the text that a checkpoint keeps."""
        if self._packed is None or self._packed[0] != len(self.memory):
            self._packed = len(self.memory), to_text(self.memory.state())
        return f"{self._packed[1]} {to_text(self._rows.state())}"

    @kept.setter
    def kept(self, text: str) -> None:
        memory, rows = text.split()
        self.memory.restore(from_text(memory))
        self._rows.restore(from_text(rows))
        self._packed = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the arguments fit the model, the data set and the Trainer."""
        trainer = calling_trainer(self)
        _check(args, trainer)
        strategy: Any = TrainerStrategy(
            trainer, kwargs["optimizer"], kwargs["train_dataloader"], self.tasks
        )
        require_whole_parameters(strategy.model, "MGEMCallback")
        require_positions(strategy, "MGEMCallback")
        self.memory.agree()
        self._partition(unwrapped(strategy.model))
        parameters = [p for _, p in restricted_parameters(unwrapped(strategy.model))]
        groups = self.memory.closed_groups()
        half = self._rows.half
        check_size(len(groups), parameters, self.max_row_bytes, "in this training", half=half)
        if isinstance(self.memory_strength, PolyakStrength):
            require_polyak(strategy, self.memory_strength, of=self.restrict)
        draws = self._rows.draws_from(self.memory.largest_group)
        try_memory(strategy, self.memory.transform, grouped=False, draws=draws)
        self._rows.start_experience()
        self._guard.start(strategy, self, events=())
        self._strategy = strategy

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compute one gradient for each group of the memory."""
        groups, strategy = self.memory.closed_groups(), self._training
        strategy.clock.train_exp_iterations = state.global_step
        if groups:
            strategy.train_mode()
        self._guard.open(strategy)
        self._compute_rows(strategy, groups, experience=self.tasks, iteration=self.steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project the gradient, or remember where the step begins (restrict="update")."""
        if not self._bounds:
            return
        if self.restrict == "gradient":
            self._restrict_gradient(self._training)
        elif self._guard.allows(self._training):
            self._start_step(self._training)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project the step that the optimiser took (restrict="update")."""
        self._restrict_step(self._training)
        self._guard.close()
        self.steps += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take samples of the task."""
        loader = self._training.dataloader
        self.memory.observe_dataset(loader.dataset, loader.collate_fn)
        self.memory.close_task()
        self._end_experience()
        self._strategy = None
        self.tasks += 1

    @property
    def _training(self) -> Any:
        if self._strategy is None:
            raise RuntimeError("MGEMCallback: a step, and no training has begun")
        return self._strategy


def _check(args: Any, trainer: Any) -> None:
    require_whole_gradients(args, "MGEMCallback", "have gradients of their own")
    if args.fp16 or trainer.accelerator.mixed_precision == "fp16":  # accelerate launch sets it too
        raise ValueError(
            "fp16=True: the memory's gradients would be those of a loss that nothing scales, and "
            "become zero where they are small; use bf16=True"
        )
    for other in trainer.callback_handler.callbacks:
        if isinstance(other, ShowsGate):
            raise ValueError(
                f"MGEMCallback does not go together with {type(other).__name__}: what it projects "
                "counts on rows that the other masks"
            )
