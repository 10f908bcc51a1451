"""A Trainer of transformers that stands for a strategy where gradients are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_mgem.huggingface.collating import OwnLoader


class TrainerStrategy:
    """What the modules of `avalanche_mgem.bridge` read of a strategy, of a Trainer.

    The loss on a minibatch is that of the Trainer's `compute_loss`, through its `_prepare_inputs`,
    in the precision that it trains in, and without its gradient accumulation.

    Args:
        trainer: whose training has begun.
        optimizer: that it steps with.
        loader: of its training data set.
        task: how many trainings have ended before this one.

    Attributes:
        mbatch, mb_output: a minibatch, and the loss on it.
        clock: the numbers of steps and tasks; the caller keeps them.
    """

    plugins: tuple[()] = ()  # no other restricts the Trainer's steps

    def __init__(self, trainer: Any, optimizer: Any, loader: Any, task: int) -> None:
        self._trainer = trainer
        self.optimizer = optimizer
        self.dataloader = OwnLoader(loader)
        self.experience = SimpleNamespace(dataset=loader.dataset, current_experience=task)
        self.clock = SimpleNamespace(train_exp_counter=task, train_exp_iterations=0)
        self.model: nn.Module = trainer.model_wrapped
        while isinstance(inner := getattr(self.model, "_orig_mod", None), nn.Module):
            self.model = inner  # the compiled model's names and hooks are others
        self.mbatch: Any = None
        self.mb_output: Any = None
        smoothing = getattr(trainer.args, "label_smoothing_factor", 0.0)
        self._criterion = SimpleNamespace(label_smoothing=smoothing)

    @property
    def device(self) -> torch.device:
        """Where the Trainer trains."""
        device: torch.device = self._trainer.args.device
        return device

    @property
    def train_mb_size(self) -> int:
        """How many samples a process sees in a training batch."""
        size: int = self._trainer.state.train_batch_size
        return size

    def train_mode(self) -> None:
        """Let model and optimiser be as in a training step; the Trainer does it later."""
        self.model.train()
        if callable(begin := getattr(self.optimizer, "train", None)):
            begin()  # of a schedule-free one: its parameters between evaluations are others

    @contextmanager
    def in_train_mode(self) -> Iterator[None]:
        """Let the model's modules be in training mode, and put their modes back on the way out."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.train()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _unpack_minibatch(self) -> None:
        self.mbatch = self._trainer._prepare_inputs(self.mbatch)

    def forward(self) -> Any:
        """Return the loss on the minibatch, a scalar tensor."""
        trainer = self._trainer
        items = None if trainer.compute_loss_func is None else self._items(self.mbatch)
        with trainer.compute_loss_context_manager():
            # A copy: labels are taken out of what it is given.
            batch = dict(self.mbatch) if isinstance(self.mbatch, Mapping) else self.mbatch
            return trainer.compute_loss(self.model, batch, num_items_in_batch=items)

    def criterion(self) -> Tensor:
        """Return the loss that `forward` has found."""
        loss: Tensor = self.mb_output
        return loss

    def _items(self, batch: Any) -> Tensor | None:
        """How many items a loss function of the user's own is to divide by: those of the batch.

        What the Trainer multiplies the loss by, to undo a count over all processes, is in it.
        """
        if not isinstance(batch, Mapping):
            return None
        labels = batch.get("shift_labels", batch.get("labels"))
        if not isinstance(labels, Tensor):
            return None
        if "shift_labels" not in batch and getattr(self._trainer, "_loss_shifts_labels", False):
            labels = labels[..., 1:]
        args = self._trainer.args
        times = self._trainer.accelerator.num_processes if args.average_tokens_across_devices else 1
        return labels.ne(-100).sum() * times
