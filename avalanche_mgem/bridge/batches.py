"""The loss on any minibatch, through the strategy's own unpack, forward and criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from avalanche.training.templates.problem_type.supervised_problem import SupervisedProblem
from torch import Tensor, nn

from avalanche_mgem.bridge.distributed import inner_model, is_wrapped
from avalanche_mgem.bridge.fields import Batch, OneByOne, samples_of, to_device
from avalanche_mgem.bridge.forward import acts_around_forward, loss_of_minibatch
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.gradients import add_to_row, into_row, rounded_once
from avalanche_mgem.model.grouped import NotGroupedError, recorded_linears, write_grouped_gradients
from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.walking import named_parameters


def batch_loss(strategy: Strategy, batch: Batch, *, half: bool = False) -> Tensor:
    """Return the strategy's loss on `batch`; its own minibatch and output are put back.

    The model stays in the mode it is in. What other plugins add to the loss is no part of it.

    half: by torch's autocast, in bfloat16.

    Raises:
        ValueError: what `loss_of_minibatch` raises.
    """
    with inner_model(strategy), swapped_minibatch(strategy, batch), in_bf16(strategy, half):
        strategy._unpack_minibatch()
        return loss_of_minibatch(strategy)


def in_bf16(strategy: Strategy, half: bool) -> AbstractContextManager[object]:
    """What runs inside is in bfloat16 where torch's autocast has it so; unless half is False."""
    return torch.autocast(strategy.device.type, torch.bfloat16) if half else nullcontext()


BatchLoss = Callable[..., Tensor]
"""Called as `batch_loss` is."""


def write_batch_gradient(
    strategy: Strategy,
    batch: Batch,
    parameters: Sequence[nn.Parameter],
    row: Tensor,
    *,
    half: bool = False,
    loss: BatchLoss = batch_loss,
) -> None:
    """Write the gradient of the loss on `batch` into row [P]; zeros where a parameter is unused.

    Of samples that go one by one it is the mean of theirs. The .grad of the model's parameters is
    put back. Backward adds into the row itself where a parameter is of its dtype.

    In several processes it is this one's gradient: DistributedDataParallel neither averages it nor
    learns of it. Reentrant activation checkpointing is refused there, by torch.

    loss: of a batch, in place of the strategy's own.
    """
    with own_gradients(strategy.model), rounded_once(row) as total:
        add_batch_gradient(strategy, batch, parameters, total, half=half, loss=loss)


def add_batch_gradient(
    strategy: Strategy,
    batch: Batch,
    parameters: Sequence[nn.Parameter],
    row: Tensor,
    *,
    half: bool = False,
    loss: BatchLoss = batch_loss,
) -> Tensor:
    """Write the gradient into row [P], which holds zeros; within `own_gradients`. Return the loss.

    Else as `write_batch_gradient`; several in turn are sooner so. half: as of `batch_loss`.
    """
    losses = _losses(strategy, batch, half, loss)
    if is_wrapped(strategy.model):
        return _write_without_hooks(losses, parameters, row)
    total = row.new_zeros(())
    parts = torch.split_with_sizes(row, [parameter.numel() for parameter in parameters])
    # By backward and not by autograd.grad, which reentrant activation checkpointing refuses.
    with torch.enable_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            fits = parameter.dtype == row.dtype and parameter.device == row.device
            parameter.grad = part.view_as(parameter) if fits else None
        for value in losses:
            value.backward()  # type: ignore[no-untyped-call]
            total = total + value.detach().reshape(())  # Avalanche's own have a dimension
        into_row(row, [parameter.grad for parameter in parameters], parameters)
    return total


def _write_without_hooks(
    losses: Iterator[Tensor], parameters: Sequence[nn.Parameter], row: Tensor
) -> Tensor:
    # Any backward pass runs the wrapper's hooks on the parameters, by which it knows what the next
    # step uses: heads of other tasks would get a gradient of zeros, and decay.
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    total = row.new_zeros(())
    with torch.enable_grad():
        for loss in losses:
            gradients = iter(torch.autograd.grad(loss, trained, allow_unused=True))
            own = [next(gradients) if p.requires_grad else None for p in parameters]
            add_to_row(row, own, parameters)
            total = total + loss.detach().reshape(())  # Avalanche's own have a dimension
    return total


def _losses(strategy: Strategy, batch: Batch, half: bool, loss: BatchLoss) -> Iterator[Tensor]:
    """Yield the losses whose sum is that on `batch`: one, or one for each sample."""
    if not isinstance(batch, OneByOne):
        yield loss(strategy, batch, half=half)
        return
    for sample in batch:
        yield loss(strategy, sample, half=half) / len(batch)


@contextmanager
def own_gradients(model: nn.Module) -> Iterator[None]:
    """Begin with no gradients, and put those that were there back on the way out."""
    saved = [(parameter, parameter.grad) for _, parameter in named_parameters(model)]
    for parameter, _ in saved:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


def write_grouped_batch_gradients(
    strategy: Strategy,
    batch: Batch,
    samples: int,
    parameters: Sequence[nn.Parameter],
    rows: Tensor,
    *,
    half: bool = False,
) -> Tensor:
    """Write the gradients of G groups of n samples into rows [G, P] by one pass.

    Returns the sum of the groups' losses.

    batch: the samples of all groups, group after group; samples: G * n. half: as of `batch_loss`;
    the products that make the rows are then in bfloat16 too, as autocast has them. The .grad of
    parameters is not touched.

    Raises:
        NotGroupedError: the model uses its layers in another way than sample by sample, or the
            strategy does more to a minibatch than run the model and the criterion.
    """
    if acts_around_forward(strategy):
        raise NotGroupedError(f"{type(strategy).__name__} acts before or after the forward pass")
    with torch.enable_grad(), inner_model(strategy), swapped_minibatch(strategy, batch):
        strategy._unpack_minibatch()
        with recorded_linears(strategy.model) as calls, in_bf16(strategy, half):
            strategy.mb_output = strategy.forward()
            loss = _sum_of_losses(strategy, samples, len(rows))
        write_grouped_gradients(calls, loss, samples, parameters, rows, half=half)
    return loss.detach().reshape(())


def _sum_of_losses(strategy: Strategy, samples: int, groups: int) -> Tensor:
    """The strategy's loss on each of the groups that its minibatch is made of, added up."""
    if not isinstance(strategy.mb_output, Tensor) or len(strategy.mb_output) != samples:
        raise NotGroupedError("the model's output is no tensor with a row for each sample")
    criterion = getattr(strategy, "_criterion", None)
    if type(strategy).criterion is SupervisedProblem.criterion:
        loss = _sum_of_means(criterion, strategy.mb_output, strategy.mb_y, groups)
        if loss is not None:
            return loss
    batch, outputs = strategy.mbatch, strategy.mb_output
    size, losses = samples // groups, []
    for start in range(0, samples, size):
        part = slice(start, start + size)
        strategy.mbatch = samples_of(batch, part, samples)
        strategy.mb_output = outputs[part]
        losses.append(strategy.criterion())
    return torch.stack(losses).sum()


def _sum_of_means(criterion: object, outputs: Tensor, labels: Tensor, groups: int) -> Tensor | None:
    """The sum of the groups' losses, where each is the mean of its samples'; None: it is not.

    The groups are of one size. A mean is over the samples that no `ignore_index` leaves out; on an
    accelerator they are counted there, as to look for them would be to wait.
    """
    if type(criterion) is not nn.CrossEntropyLoss:
        return None
    if criterion.reduction != "mean" or criterion.weight is not None:
        return None
    if labels.device.type == "cpu":
        ignores = bool((labels == criterion.ignore_index).any())
        return None if ignores else cast(Tensor, criterion(outputs, labels)) * groups
    if labels.ndim != 1 or outputs.ndim != 2 or labels.is_floating_point():
        return None
    losses = nn.functional.cross_entropy(
        outputs,
        labels,
        reduction="none",
        ignore_index=criterion.ignore_index,
        label_smoothing=criterion.label_smoothing,
    )
    counted = (labels != criterion.ignore_index).view(groups, -1).sum(1)
    return (losses.view(groups, -1).sum(1) / counted).sum()


@contextmanager
def swapped_minibatch(strategy: Strategy, batch: Batch) -> Iterator[None]:
    """Let a batch be the strategy's minibatch; its own minibatch and output are put back."""
    own_batch, own_output = strategy.mbatch, strategy.mb_output
    # A new outer container: _unpack_minibatch writes the moved tensors into the one it is given.
    strategy.mbatch = to_device(batch, None)
    try:
        yield
    finally:
        strategy.mbatch, strategy.mb_output = own_batch, own_output


@contextmanager
def evaluated_normalization(model: nn.Module) -> Iterator[None]:
    """Normalise by running statistics, which stay as they are, in layers that keep any."""
    training = [
        module
        for module in model.modules()
        if module.training and getattr(module, "running_mean", None) is not None
    ]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def restored_running_statistics(model: nn.Module) -> Iterator[None]:
    """Put the running statistics of normalisation layers back on the way out."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    saved = [
        (buffer, buffer.clone())
        for module in model.modules()
        for name in names
        if isinstance(buffer := getattr(module, name, None), Tensor) and not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)
