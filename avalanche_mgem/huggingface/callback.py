"""MIGU as a callback of the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.huggingface.calling import require_hook_before_step, require_whole_gradients
from avalanche_mgem.model.distributed import require_in_step, require_whole_parameters
from avalanche_mgem.model.fused import Fused
from avalanche_mgem.model.gate import Freeze, RowGate, Score, Ungated
from avalanche_mgem.model.gate_shown import ShowsGate
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.targets import TargetModules
from avalanche_mgem.restriction.rows import Normalize


class MIGUCallback(ShowsGate, TrainerCallback, ExportableState):
    """Let only those rows of linear layers move whose outputs are the largest.

    Example::

        migu = MIGUCallback()
        for dataset in tasks:
            Trainer(model, arguments, train_dataset=dataset, callbacks=[migu]).train()

    What `avalanche_mgem.MIGUPlugin` is to Avalanche, on the same core: see there for the method
    (arXiv 2406.17245, eq. 3-6) and for the arguments. Each finished `train()` is a task, those of
    `hyperparameter_search` too, so hand one callback to all Trainers in turn.

    Runs on `on_step_begin` (from here on, forward passes in training mode that build a graph are
    recorded; evaluation, generation and what activation checkpointing computes anew are not),
    `on_pre_optimizer_step` (the mask, over all forward passes since `on_step_begin`: all of an
    accumulated gradient) and `on_optimizer_step`. Between steps and after training the model has no
    hook of it; where training fails in the middle of a step, the next `train()` takes them off.

    Several processes, as torchrun or accelerate start them, mask the same rows, by the outputs of
    all of them, where the Trainer wraps the model in DistributedDataParallel.

    The Trainer clips gradients before `on_pre_optimizer_step`: the norm that it clips and logs is
    that of all rows, the masked ones too. So with `max_grad_norm` (1.0 unless it is set) their
    gradients are computed. With max_grad_norm=0, and one forward pass in each step, they are not,
    which is faster; see `last_path` and `MIGUPlugin`. The norm that is logged lacks them then.

    With gradient_accumulation_steps=k, transformers 5 divides the loss by k for models alone that
    take no further keywords, and leaves it to all others to divide theirs by `num_items_in_batch`.
    Losses that do not (the classifiers of BERT, RoBERTa, DistilBERT and Llama, masked language
    models, T5) make gradients k times as long as one batch of that size does. Masks are not changed
    by it, nor are steps of Adam; those of SGD are k times as long, and a norm is clipped k times as
    early. `trainer.model_accepts_loss_kwargs = False`, before `train()`, undoes it.

    A Trainer that resumes from one of its checkpoints knows which task it was if it is given
    `restore_callback_states_from_checkpoint`; it then puts a callback of its own in the place of
    the one that it was handed. Otherwise set `tasks`.

    Args: as those of `avalanche_mgem.MIGUPlugin`, but `skip_steps`.

    Attributes:
        tasks: how many calls of `train()` have ended.
        draws: how many steps have drawn their rows (score="random").
        mask_fraction: as the argument.
        last_mask: which rows the last step might move, bool [n] for each gated layer by its name;
            None where all might.
        last_scores: the scores of the last step, float32 [n] by layer, also where nothing was
            masked; None before the first.

    Raises:
        ValueError: an argument out of range, at construction; when training begins, what
            `find_gated_layers` raises, a compiled model, training on several GPUs by one process,
            or on sharded parameters.
        RuntimeError: parameters or gradients are not the same in all processes, before the first
            step.
        ImportError: transformers is older than 4.45.
    """

    def __init__(
        self,
        mask_fraction: float = 0.7,
        *,
        target_modules: TargetModules = None,
        heads: Heads = None,
        score: Score = "output",
        freeze: Freeze = "gradient",
        ungated: Ungated = "train",
        normalize: Normalize = "none",
        ignore_padding: bool = False,
        fused: Fused = "layer",
        skip_tasks: int = 1,
        seed: int | None = None,
    ) -> None:
        require_hook_before_step("MIGUCallback")
        self._arguments: dict[str, Any] = {
            "target_modules": target_modules,
            "heads": heads,
            "score": score,
            "freeze": freeze,
            "ungated": ungated,
            "normalize": normalize,
            "ignore_padding": ignore_padding,
            "fused": fused,
            "seed": seed,
        }
        self._gate = RowGate(mask_fraction, **self._arguments)
        self.skip_tasks = positive_int("skip_tasks", skip_tasks, minimum=0)
        self.tasks = 0
        self._hooks: list[RemovableHandle] = []
        self._in_step = False  # whether the processes are known to be
        self._whole = _NOT_KNOWN  # why gradients must be whole

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_hooks": []}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update({"_whole": _NOT_KNOWN, **state})  # of a pickle that is older

    @property
    def draws(self) -> int:
        """How many steps have drawn their rows."""
        return self._gate.draws

    @draws.setter
    def draws(self, value: int) -> None:
        self._gate.draws = value

    def state(self) -> dict[str, Any]:
        """Return what a Trainer's checkpoint keeps of the callback."""
        gate = self._gate
        arguments = {
            **self._arguments,
            "mask_fraction": gate.mask_fraction,
            "target_modules": gate.target_modules,  # of sets, JSON knows nothing
            "heads": gate.heads,
            "fused": gate.fused,
            "seed": gate.seed,
            "skip_tasks": self.skip_tasks,
        }
        return {"args": arguments, "attributes": {"tasks": self.tasks, "draws": self.draws}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the layers."""
        _check(args, self._gate.score)
        require_whole_parameters(kwargs["model"], "MIGUCallback")
        self._in_step = False
        self._close()
        self._whole = _why_whole(args) or _NOT_KNOWN
        self._gate.find(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to record the magnitudes."""
        self._close()
        self._gate.reset()
        self._gate.begin()
        model: nn.Module = kwargs["model"]
        whole = self._whole if self.tasks >= self.skip_tasks else "no row is masked"
        # Not always_call: the gate has a guard of its own against a forward pass that fails.
        self._hooks = [
            model.register_forward_pre_hook(_Open(self._gate, whole), with_kwargs=True),
            model.register_forward_hook(_Close(self._gate)),
        ]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mask the gradients, and hold the rows through the step (freeze="update")."""
        self._close()
        if self._whole == _NOT_KNOWN:
            self._whole = "" if self._gate.passes == 1 else "several forward passes in a step"
        if not self._in_step:
            require_in_step(kwargs["model"])
            self._in_step = True
        if self.tasks >= self.skip_tasks:
            self._gate.mask(kwargs["model"])
            self._gate.hold(kwargs["model"], kwargs["optimizer"])
        else:
            self._gate.look(kwargs["model"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the step."""
        self._gate.release()
        self._gate.reset()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the task."""
        self._close()
        self._gate.drop()
        self._gate.forget()
        self.tasks += 1

    def _close(self) -> None:
        self._gate.close()
        while self._hooks:
            self._hooks.pop().remove()


@dataclass
class _Open:
    """Opens the gate's window when a training pass of the model begins; a copy does nothing."""

    gate: RowGate
    whole: str

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], batch: Mapping[str, Any]
    ) -> None:
        if module.training and torch.is_grad_enabled():
            self.gate.open(module, batch, whole=self.whole)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return _no_hook, ()


@dataclass
class _Close:
    """Closes the window when a pass ends, which shows the heads; a copy does nothing."""

    gate: RowGate

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        self.gate.close(module, output)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*arguments: object) -> None:
    """Stand for a hook in a copy of the model."""


# How many forward passes a step has is seen in the first one.
_NOT_KNOWN = "the first step of this training"


def _why_whole(args: Any) -> str:
    """Return why the gradients of masked rows must be computed; "": nothing of these says so."""
    if args.gradient_accumulation_steps > 1:
        return "gradient_accumulation_steps"
    if args.max_grad_norm:
        return "max_grad_norm, which is of all rows"
    return "fp16, whose scaler must see what overflows" if args.fp16 else ""


def _check(args: Any, score: str) -> None:
    if args.torch_compile and score == "output":
        raise ValueError(
            "torch_compile=True: a compiled model does not call the hooks that record outputs; "
            "train without it, or with another score than 'output'"
        )
    require_whole_gradients(args, "MIGUCallback", "record nothing")
