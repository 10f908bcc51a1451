"""Minibatches that are larger than what goes through the model at a time.

strategy = with_gradient_accumulation(Naive)(
    model=model, optimizer=optimizer, train_mb_size=64, micro_batch_size=8
)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avalanche_mgem.arguments import flag, positive_int
from avalanche_mgem.bridge.distributed import is_wrapped
from avalanche_mgem.bridge.fields import Batch, joined, samples_of
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.wrapping import StrategyWrapper, wrapped
from avalanche_mgem.model.distributed import average_gradients, unwrapped
from avalanche_mgem.model.freezing import restored_buffers
from avalanche_mgem.model.gate_shown import ShowsGate

# How far the sum of the parts' losses may be from the loss of the whole, relative to it.
_ROUNDING = {torch.bfloat16: 0.03, torch.float16: 0.004}
_FLOAT32_ROUNDING = 1e-4


class GradientAccumulation(StrategyWrapper):
    """Makes an Avalanche strategy take each minibatch through the model in parts.

    Put before a strategy's class, `class MyReplay(GradientAccumulation, Replay): pass`, or use
    `with_gradient_accumulation(Replay)`, which is the same. A minibatch of train_mb_size samples
    goes through in micro-batches of micro_batch_size, the last of which may be smaller. It is one
    iteration with one step all the same, and plugins see each event once: mGEM projects the
    gradient of the whole minibatch, MIGU's scores are over all of its samples, and mb_output is the
    output for all of them. Without batch normalisation, whose statistics are those of a
    micro-batch, and dropout, which draws in another order, the run is that of the undivided
    minibatch but for rounding.

    Where gradients are measured, for mGEM's memory and the hybrid strategy's probes, larger batches
    are divided as well. Evaluation is not, it has eval_mb_size; nor are passes that plugins make by
    the model itself, such as those of EWC's importances.

    Steps that are accumulated over several iterations, by a training loop of one's own, suit our
    plugins only if that loop triggers `after_backward`, `before_update` and `after_update` where
    its optimiser steps and nowhere else: mGEM would project parts of a gradient, and MIGU would
    mask a step by the last part's scores.

    Args:
        micro_batch_size: how many samples go through the model at a time.
        recompute: True: each micro-batch but the last is run forward twice, the second time for its
            part of the backward pass, of which it takes up the memory alone (as in activation
            checkpointing). Any loss of the outputs is right, and so is what plugins add to it.
            False: a backward pass follows on each micro-batch, which saves the second pass forward.
            That takes a loss that is the mean of its samples' losses, an output that is a tensor,
            and plugins that add to the loss what they compute by themselves (EWC, not LwF, which
            uses mb_output); anything else is refused with an error before the step.

    Raises:
        ValueError: an argument out of range, at construction; in training, a batch that cannot be
            divided, outputs that cannot be joined, and with recompute=False what it does not take.
        TypeError: the strategy has a training loop of its own.
    """

    def __init__(self, *, micro_batch_size: int, recompute: bool = True, **options: Any) -> None:
        micro_batch_size = positive_int("micro_batch_size", micro_batch_size)
        recompute = flag("recompute", recompute)
        super().__init__(**options)
        self.micro_batch_size = micro_batch_size
        self.recompute = recompute
        self._accumulated: _Accumulated | None = None  # with recompute=False, of this minibatch
        self._averages = False  # the gradients of this minibatch itself, with several processes

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._accumulated, self._averages = None, False

    def _before_forward(self, **kwargs: Any) -> None:
        self._accumulated, self._averages = None, False
        super()._before_forward(**kwargs)

    def _after_forward(self: Any, **kwargs: Any) -> None:
        if self._accumulated is not None:
            self._accumulated.shown = self.mb_output
        super()._after_forward(**kwargs)

    def _forward(self: Any, own: bool) -> Any:
        samples = len(self.mb_y)
        if samples <= self.micro_batch_size or not torch.is_grad_enabled():
            return super()._forward(own)
        parts = self._parts(samples)
        if own and not self.recompute:
            return self._accumulate(parts, samples)
        last = len(parts) - 1
        self._averages = own and is_wrapped(self.model)
        outputs = []
        for at, part in enumerate(parts):
            with self._watched(part) if own else nullcontext():
                outputs.append(self._part_forward(part, own, again=at < last))
        return _joined_outputs(outputs)

    def criterion(self: Any) -> Tensor:
        """Compute the loss, or return what has been accumulated of it."""
        accumulated = self._accumulated
        if accumulated is not None and self.mb_output is accumulated.shown:
            return accumulated.loss  # type: ignore[no-any-return]
        return super().criterion()

    def backward(self: Any) -> None:
        """Run the backward pass; what has been accumulated is there already."""
        super().backward()
        if self._averages:
            average_gradients(unwrapped(self.model))
            self._averages = False
        if self._accumulated is None:
            return
        accumulated, self._accumulated = self._accumulated, None
        if not accumulated.is_only_added_to(self.loss_scale):
            raise ValueError(
                "recompute=False takes plugins that only add to the loss, and what does not depend "
                "on mb_output: take recompute=True"
            )

    def _parts(self: Any, samples: int) -> list[Batch]:
        size = self.micro_batch_size
        try:
            return [
                samples_of(self.mbatch, slice(start, start + size), samples)
                for start in range(0, samples, size)
            ]
        except ValueError as error:
            raise ValueError(
                f"micro_batch_size={size} cannot divide this minibatch: {error}"
            ) from error

    def _part_forward(self: Any, part: Batch, own: bool, *, again: bool) -> Any:
        """The output for some samples; again: its activations are computed again when needed."""
        # DistributedDataParallel expects a backward pass after each forward pass through it, with
        # all parameters that the pass before has not used: parts of one backward pass go by the
        # model inside, which may be the strategy's no more when run again.
        model = unwrapped(self.model) if again or self._averages else self.model

        def run(*_: Tensor) -> Any:
            with _swapped(self, part, model):
                return super(GradientAccumulation, self)._forward(own)

        if not again:
            return run()
        # The tensors are there for checkpoint to see whose devices' random states it must keep.
        return checkpoint(run, *_tensors(part), use_reentrant=False, context_fn=self._recomputation)

    def _recomputation(self: Any) -> tuple[AbstractContextManager[None], ...]:
        """What the two passes run in: the second leaves running statistics as they are."""
        return nullcontext(), restored_buffers(self.model)

    @contextmanager
    def _watched(self: Any, part: Batch) -> Iterator[None]:
        """Let the plugins with a gate look at this part, whose padding they must know."""
        gated: list[Any] = [plugin for plugin in self.plugins if isinstance(plugin, ShowsGate)]
        with _swapped(self, part):
            for plugin in gated:
                plugin.before_forward(self)
        yield
        for plugin in gated:
            plugin.after_forward(self)

    def _accumulate(self: Any, parts: list[Batch], samples: int) -> Tensor:
        """Run forward and backward part by part; return the output for all, without a graph."""
        outputs, losses = [], []
        for part in parts:
            with _swapped(self, part):
                with self._watched(part):
                    self.mb_output = self._part_forward(part, True, again=False)
                output = _plain_output(self.mb_output, len(self.mb_y))
                loss = self.criterion() * (len(output) / samples)
                self._backward_of(loss)
            outputs.append(output.detach())
            losses.append(loss.detach())
        output, loss = torch.cat(outputs), torch.stack(losses).sum()
        self._check_mean(output, loss)
        self._accumulated = _Accumulated(output.requires_grad_(), loss.requires_grad_())
        return output

    def _backward_of(self: Any, loss: Tensor) -> None:
        whole, self.loss = self.loss, loss
        try:
            # The backward pass takes the forward pass's dtypes, it should not be cast itself.
            with torch.autocast(self.device.type, enabled=False):
                self.backward()
        finally:
            self.loss = whole

    def _check_mean(self: Any, output: Tensor, loss: Tensor) -> None:
        """Raise ValueError unless the loss is that of the whole minibatch."""
        own, self.mb_output = self.mb_output, output
        try:
            with torch.no_grad():
                whole = self.criterion()
        finally:
            self.mb_output = own
        far = _ROUNDING.get(whole.dtype, _FLOAT32_ROUNDING)
        if not torch.allclose(loss.double(), whole.double(), rtol=far, atol=1e-6, equal_nan=True):
            raise ValueError(
                "recompute=False takes a loss that is the mean of its samples' losses, but those "
                f"of the parts make {float(loss):.6g} and that of the whole is "
                f"{float(whole):.6g}: take recompute=True"
            )


def with_gradient_accumulation(strategy: type[Any]) -> Any:
    """Return an Avalanche strategy's class that takes micro-batches; see `GradientAccumulation`.

    Raises:
        ValueError: `strategy` is no class of a supervised strategy.
        TypeError: it has a training loop of its own.
    """
    return wrapped(GradientAccumulation, strategy)


@dataclass
class _Accumulated:
    """A minibatch's output and its loss, leaves that tell by their gradients what becomes of them.

    shown: the output as plugins have it, which may be in another dtype.
    """

    output: Tensor
    loss: Tensor
    shown: Any = None

    def is_only_added_to(self, loss_scale: float) -> bool:
        """Whether the total is this loss plus what does not depend on the output."""
        slope = self.loss.grad
        return self.output.grad is None and slope is not None and slope.item() == loss_scale


@contextmanager
def _swapped(strategy: Strategy, batch: Batch, model: nn.Module | None = None) -> Iterator[None]:
    """The strategy's minibatch is `batch` inside, and its model is `model`."""
    own = strategy.mbatch, strategy.mb_output, strategy.model
    strategy.mbatch = batch
    strategy.model = strategy.model if model is None else model
    try:
        yield
    finally:
        strategy.mbatch, strategy.mb_output, strategy.model = own


def _tensors(batch: Batch) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for field in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(field)


def _plain_output(output: Any, samples: int) -> Tensor:
    if type(output) is not Tensor or output.ndim == 0 or len(output) != samples:
        kind = type(output).__name__
        raise ValueError(
            "recompute=False takes a model whose output is a tensor with a row for each sample, "
            f"got {kind}{tuple(getattr(output, 'shape', ()))}: take recompute=True"
        )
    return output


def _joined_outputs(outputs: list[Any]) -> Any:
    """One output for all samples, of the kind that the parts are."""
    first = outputs[0]
    try:
        if not isinstance(first, Tensor) or type(first) is Tensor:
            return joined(outputs)
        # What has tensors for attributes, such as the logits of tokens, is joined by each of them.
        plain = [output.as_subclass(Tensor) for output in outputs]
        whole = joined(plain).as_subclass(type(first))
        for name, value in vars(first).items():
            if isinstance(value, Tensor):
                setattr(whole, name, joined([getattr(output, name) for output in outputs]))
        return whole
    except ValueError as error:
        raise ValueError(f"micro_batch_size: outputs cannot be joined: {error}") from error
