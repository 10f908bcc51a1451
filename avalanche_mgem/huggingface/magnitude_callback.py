"""Hybrid magnitude as a callback of the Hugging Face Trainer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from avalanche_mgem.arguments import one_of
from avalanche_mgem.bridge.beside import refuse_before_scaling
from avalanche_mgem.bridge.decisions import Magnitude
from avalanche_mgem.bridge.distributed import require_unused
from avalanche_mgem.bridge.magnitude import (
    ChoosesMagnitude,
    Granularity,
    Mode,
    probed_names,
    why_not_finite,
)
from avalanche_mgem.bridge.probe_head import ProbeHead
from avalanche_mgem.bridge.trial import require_positions, try_probe
from avalanche_mgem.huggingface.calling import (
    calling_trainer,
    require_hook_before_step,
    require_whole_gradients,
)
from avalanche_mgem.huggingface.kept import KeepsArguments, from_text, to_text
from avalanche_mgem.huggingface.standing import TrainerStrategy
from avalanche_mgem.model.blocks import Blocks, Modules
from avalanche_mgem.model.distributed import first_of_all, require_whole_parameters, unwrapped
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.hooks import no_hook
from avalanche_mgem.model.layers import find_heads, gateable_layers
from avalanche_mgem.model.optimizers import parameters_of
from avalanche_mgem.restriction.similarity import Decision, Metric, Schedule

_LOG = logging.getLogger(__name__)
_NAME = "HybridMagnitudeCallback"


class HybridMagnitudeCallback(KeepsArguments, ChoosesMagnitude, TrainerCallback, ExportableState):
    """Train few modules on a task that is like the last one, more on another, or shorten steps.

    Example::

        magnitude = HybridMagnitudeCallback("decay")
        for dataset in tasks:
            Trainer(model, arguments, train_dataset=dataset, callbacks=[magnitude]).train()

    What `avalanche_mgem.HybridMagnitudePlugin` is to Avalanche, on the same core: see there for the
    method (arXiv 2602.20796, algorithm 1) and for the arguments. Each finished `train()` is a task,
    those of `hyperparameter_search` too, so hand one callback to all Trainers in turn. The first
    task, and all with mode="initialized", are those of the Trainer alone, to the bit.

    Runs on `on_train_begin` (the decision), `on_epoch_begin` (from the first on, what does not
    train is frozen), `on_pre_optimizer_step` and `on_optimizer_step` (the step of what trains, but
    for the output heads, is scaled: with its momentum and weight decay, after gradients have been
    accumulated and clipped) and `on_train_end` (everything is thawed, and g_{t-1} is measured).
    While a task trains the model has two hooks, which keep frozen batch norm in evaluation mode and
    see the heads. An error in training leaves parameters frozen until a Trainer is made with the
    callback, or until `thaw(model)`.

    The gradients that tasks are compared by (mode="adaptive") are those of the Trainer's own loss,
    by its `compute_loss`, on batches that its own collate function makes of the training data set,
    in training mode and in the precision that it trains in. They leave no trace in the training.
    Trainers that log what `compute_loss` meets log these passes with it.

    The norm that the Trainer clips and logs is that of what trains.

    Beside an `MGEMCallback` take its restrict="update", and list this callback before it, so that
    the scaled step is what is restricted.

    Several processes, as torchrun or accelerate start them: g is over the data of all, and the
    first one's decision is that of all.

    A Trainer's checkpoint keeps the decision of its task, in `trainer_state.json`, and not g_{t-1},
    which is measured again where the resumed task ends. A Trainer that resumes takes it up if it is
    given `restore_callback_states_from_checkpoint`; it then puts a callback of its own in the place
    of the one that it was handed. Otherwise call `load`.

    Args:
        probe_head: "own", and "auto" is the same: gradients are taken behind the model's own head.
            No head is fitted to a Trainer's data, as its loss need not classify.
        probe_batches: g is the mean over so many batches of per_device_train_batch_size.
        others: as those of the plugin. g_{t-1} is measured at the end of a task.

    Attributes:
        tasks: how many calls of `train()` have ended.
        last_decision: what trains, and why; None before training.

    Raises:
        ValueError: an argument out of range, at construction. When training begins: modules, heads
            or numbers that do not fit the model, a model without a head that is found, training on
            several GPUs by one process or on sharded parameters, an MGEMCallback with
            restrict="update" before this one, frozen running statistics in a compiled model,
            reentrant gradient checkpointing where modules are to be frozen. With mode="adaptive",
            a data set without positions, samples that make no batch, fp16=True, and tasks of which
            the last one's gradient is not known.
        RuntimeError: the optimiser was made while parameters were frozen.
        FloatingPointError: a gradient that tasks are compared by is not finite.
        ImportError: transformers is older than 4.45.
    """

    # The Trainer, while it trains: of a Strategy it has what gradients are measured by.
    _strategy: Any = None

    def __init__(
        self,
        mode: Mode = "adaptive",
        *,
        threshold: float = 0.0,
        low: int = 1,
        high: int | None = None,
        schedule: Schedule = "hard",
        granularity: Granularity = "model",
        modules: Modules = None,
        heads: Heads = None,
        metric: Metric = "cosine",
        probe_head: ProbeHead = "auto",
        probe_batches: int = 8,
        magnitude_decay: float | None = None,
        low_magnitude: float = 0.0,
        magnitude: Magnitude | None = None,
        seed: int | None = None,
    ) -> None:
        require_hook_before_step(_NAME)
        one_of("probe_head", probe_head, ("own", "ridge", "auto"))
        if probe_head == "ridge":
            raise ValueError(
                "probe_head='ridge' fits a head to classes, and a Trainer's loss need not have "
                "any: take 'own'; HybridMagnitudePlugin has it for strategies of Avalanche"
            )
        self.probe_head = probe_head
        chosen: dict[str, Any] = {
            "threshold": threshold,
            "low": low,
            "high": high,
            "schedule": schedule,
            "granularity": granularity,
            "modules": modules,
            "heads": heads,
            "metric": metric,
            "probe_batches": probe_batches,
            "magnitude_decay": magnitude_decay,
            "low_magnitude": low_magnitude,
            "magnitude": magnitude,
            "seed": seed,
        }
        super().__init__(mode, **chosen)
        own = {"modules": self.modules, "heads": self.heads}  # which no caller can change any more
        self._arguments = {"mode": mode, "probe_head": probe_head, **chosen, **own}
        self._is_open = False  # whether the last decision is that of a task that has not ended
        self._hooks: list[RemovableHandle] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_strategy": None, "_hooks": []}

    @property
    def tasks(self) -> int:
        """How many calls of `train()` have ended."""
        return self._ended

    @tasks.setter
    def tasks(self, value: int) -> None:
        self._ended = value

    def thaw(self, model: nn.Module) -> None:
        """Put back what a task has frozen, and take the hooks off, as its end does."""
        self._take_off()
        super().thaw(unwrapped(model))

    def state(self) -> dict[str, Any]:
        """Return what a Trainer's checkpoint keeps of the callback."""
        return self._kept_state(tasks=self.tasks, kept=self.kept)

    @property
    def kept(self) -> str:
        """The decision of the task at hand and the random state, as the text of a checkpoint."""
        decision = self.last_decision if self._is_open else None
        return to_text(
            {
                "decision": None if decision is None else dataclasses.asdict(decision),
                "heads": self._heads_known,
                "random": self._probe.state(),
            }
        )

    @kept.setter
    def kept(self, text: str) -> None:
        kept = from_text(text)
        decision = kept["decision"]
        self.last_decision = None if decision is None else Decision(**decision)
        self._is_open = decision is not None
        self._heads_known = kept["heads"]
        self._probe.restore(kept["random"])

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Thaw what an interrupted training left frozen, before a Trainer makes its optimiser."""
        self._take_off()
        self._freezer.release(unwrapped(kwargs["model"]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the arguments fit the model and the Trainer, and decide what trains."""
        trainer = calling_trainer(self)
        require_whole_gradients(args, _NAME, "be scaled and frozen by nobody")
        strategy: Any = TrainerStrategy(
            trainer, kwargs["optimizer"], kwargs["train_dataloader"], self.tasks
        )
        require_whole_parameters(strategy.model, _NAME)
        model = unwrapped(strategy.model)
        self._require_stepped(model, kwargs["optimizer"])
        self._take_off()
        self._freezer.release(model)
        self._step.drop()
        if self._scales:
            callbacks: Any = SimpleNamespace(plugins=trainer.callback_handler.callbacks)
            refuse_before_scaling(callbacks, self)
        self._require_head(model)
        blocks = self._blocks(model)
        if self._freezes:
            _require_freezable(args, strategy, blocks)
        if self.mode == "adaptive":
            _require_probes(args, strategy)
        # What of the model has moved since the task began is not what it was decided by.
        if not (self._is_open and state.global_step > 0):
            self._decide(strategy, blocks)
        assert self.last_decision is not None
        self._factors = self._factors_of(self.last_decision, blocks)
        self._is_open = True
        # Layers inside a compiled model cannot be watched.
        sees = self._freezes or self._scales
        self._watches = self.heads is None and sees and not args.torch_compile
        self._strategy = strategy

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze what the decision leaves out, when all callbacks have seen the whole model."""
        if self._hooks or self._strategy is None or self.last_decision is None:
            return
        model = unwrapped(self._strategy.model)
        frozen = self._left_out(self.last_decision)
        if frozen:
            self._freeze_modules(model, frozen, self._blocks(model))
        if self._freezer.has_statistics or self._watches:
            self._hooks = [
                model.register_forward_pre_hook(_Hook(self._forward_begins)),
                model.register_forward_hook(_Hook(self._forward_ends)),
            ]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember what the step is shortened from."""
        strategy = self._training
        self._freezer.keep(unwrapped(strategy.model))
        self._begin_step(strategy)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shorten the step."""
        self._step.end()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Thaw, and measure g_{t-1}."""
        strategy = self._training
        model = unwrapped(strategy.model)
        self._freezer.keep(model)
        self.thaw(model)
        self._heads_known = self._heads_seen.found or self._heads_known
        strategy.clock.train_exp_iterations = state.global_step
        if self.mode == "adaptive":
            self._earlier = self._gradient(strategy, self._blocks(model))
        self._strategy, self._is_open = None, False
        self.tasks += 1

    @property
    def _training(self) -> Any:
        if self._strategy is None:
            raise RuntimeError(f"{_NAME}: a step, and no training has begun")
        return self._strategy

    @property
    def _freezes(self) -> bool:
        return not self._trains_all and self.low_magnitude == 0.0

    def _take_off(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._heads_seen.close()

    def _require_stepped(self, model: nn.Module, optimizer: Any) -> None:
        stepped = {id(p) for p in parameters_of(optimizer)}
        if any(id(p) not in stepped for p in self._freezer.frozen(model)):
            raise RuntimeError(
                f"the Trainer has made its optimiser while {_NAME} had parameters frozen, as a "
                "training before it ended by an error: call the callback's thaw(model) and make "
                "the Trainer anew"
            )

    def _require_head(self, model: nn.Module) -> None:
        if self.heads is None and not find_heads(model, None, self._heads_known):
            raise ValueError(
                f"heads: no output head is found in {type(model).__name__}, and heads always "
                "train: name it, or give heads=() where there is none"
            )

    def _decide(self, strategy: Any, blocks: Blocks) -> None:
        gradient: dict[str, Tensor] = {}
        if self.mode == "adaptive" and self.tasks > 0:
            if not self._earlier:
                raise ValueError(
                    f"{self.tasks} tasks have ended, and the gradient of the last is not known: a "
                    "checkpoint keeps the decision of its own task alone, so resume that one with "
                    "train(checkpoint) first"
                )
            gradient = self._gradient(strategy, blocks)
        decision = self._decision(blocks, gradient, "own", is_first=self.tasks == 0)
        self.last_decision = first_of_all(decision)
        _LOG.info("hybrid magnitude: %s", self.last_decision)

    def _gradient(self, strategy: Any, blocks: Blocks) -> dict[str, Tensor]:
        """Return the mean gradient of the Trainer's loss over the probe's batches."""
        loader = strategy.dataloader
        with strategy.in_train_mode():
            gradient = self._probe.gradient(
                strategy, loader.dataset, probed_names(blocks), loader.collate_fn
            )
        if (reason := why_not_finite(gradient, strategy)) is not None:
            raise FloatingPointError(reason)
        return gradient

    def _forward_begins(self, module: nn.Module, *arguments: object) -> None:
        """See to it that what is frozen stays so: the Trainer calls model.train() at every step."""
        self._freezer.keep(module)
        if self._watches and module.training and torch.is_grad_enabled():
            self._heads_seen.open(gateable_layers(module))

    def _forward_ends(self, module: nn.Module, arguments: object, output: object) -> None:
        """See in the first output of a training which layers are its heads."""
        if self._heads_seen.is_open:
            self._heads_seen.close(output)
            self._watches = False


@dataclass
class _Hook:
    """A hook on the model; a copy of it, as in a copy of the model, does nothing."""

    function: Callable[..., None]

    def __call__(self, *arguments: object) -> None:
        self.function(*arguments)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()


def _require_freezable(args: Any, strategy: Any, blocks: Blocks) -> None:
    """Raise ValueError where modules cannot be frozen in the course of a training."""
    require_unused(strategy.model)
    if args.torch_compile and any(blocks.statistics.values()):
        raise ValueError(
            "torch_compile=True: a compiled model does not call the hook that keeps frozen running "
            "statistics; train without it"
        )
    if any(map(_is_reentrant, strategy.model.modules())):
        raise ValueError(
            "gradient_checkpointing: with use_reentrant=True, modules behind frozen ones have no "
            "gradient; set gradient_checkpointing_kwargs={'use_reentrant': False}"
        )


def _is_reentrant(module: nn.Module) -> bool:
    """Whether it is one of transformers' that checkpoints what it calls in the reentrant way."""
    function = getattr(module, "_gradient_checkpointing_func", None)
    options = getattr(function, "keywords", {})
    return getattr(module, "gradient_checkpointing", False) and options.get("use_reentrant", False)


def _require_probes(args: Any, strategy: Any) -> None:
    """Raise ValueError where no gradient of a task can be measured."""
    if args.fp16:
        raise ValueError(
            "fp16=True: the gradients that tasks are compared by would be those of a loss that "
            "nothing scales, and become zero where they are small; use bf16=True"
        )
    require_positions(strategy, _NAME)
    try_probe(strategy)
