"""The loss on any minibatch, through the strategy's own unpack, forward and criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any  # what a collate function makes: a list or tuple of tensors, or a mapping


def to_device(batch: Batch, device: torch.device | None) -> Batch:
    """Return a new batch of the same kind whose tensors are on `device` (None: where they are)."""
    if isinstance(batch, Tensor):
        return batch if device is None else batch.to(device)
    if isinstance(batch, Mapping):
        fields = {key: to_device(value, device) for key, value in batch.items()}
        return type(batch)(fields)  # type: ignore[call-arg]  # a BatchEncoding stays one
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def batch_loss(strategy: Any, batch: Batch) -> Tensor:
    """Return the strategy's loss on `batch`; its own minibatch and output are put back.

    The model stays in the mode it is in. What other plugins add to the loss is no part of it.
    """
    with _swapped_minibatch(strategy, batch):
        strategy._unpack_minibatch()
        strategy.mb_output = strategy.forward()
        loss: Tensor = strategy.criterion()
        return loss


def batch_gradient(
    strategy: Any, batch: Batch, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor | None, ...]:
    """Return the gradient of the loss on `batch`, one tensor a parameter; None where unused.

    The .grad of the model's parameters is put back.
    """
    # By backward and not by autograd.grad, which reentrant activation checkpointing refuses.
    with torch.enable_grad(), _own_gradients(strategy.model):
        batch_loss(strategy, batch).backward()  # type: ignore[no-untyped-call]
        return tuple(parameter.grad for parameter in parameters)


@contextmanager
def _own_gradients(model: nn.Module) -> Iterator[None]:
    """Begin with no gradients, and put those that were there back on the way out."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in saved:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


@contextmanager
def _swapped_minibatch(strategy: Any, batch: Batch) -> Iterator[None]:
    own_batch, own_output = strategy.mbatch, strategy.mb_output
    # A new outer container: _unpack_minibatch writes the moved tensors into the one it is given.
    strategy.mbatch = to_device(batch, None)
    try:
        yield
    finally:
        strategy.mbatch, strategy.mb_output = own_batch, own_output


@contextmanager
def restored_running_statistics(model: nn.Module) -> Iterator[None]:
    """Put the running statistics of normalisation layers back on the way out."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    saved = [
        (buffer, buffer.clone())
        for module in model.modules()
        for name in names
        if isinstance(buffer := getattr(module, name, None), Tensor)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
