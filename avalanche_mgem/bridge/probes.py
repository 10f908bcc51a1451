"""The gradient of the loss on some data, measured without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.bridge.batches import BatchLoss, batch_loss, write_batch_gradient
from avalanche_mgem.bridge.collation import Collate, batches_of, collate_of, view
from avalanche_mgem.bridge.distributed import average_rows, own_part
from avalanche_mgem.bridge.fields import Batch
from avalanche_mgem.bridge.probe_head import LEAST_SAMPLES, fitted_head, loss_behind
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.distributed import first_of_all, n_processes, unwrapped
from avalanche_mgem.model.freezing import restored_buffers
from avalanche_mgem.model.gradients import positions
from avalanche_mgem.model.lazy import uninitialized
from avalanche_mgem.model.randomness import RandomStream


class GradientProbe:
    """Measures mean gradients over a few minibatches.

    Several processes share a minibatch, of their number times train_mb_size samples, as they do in
    training: each measures on its own part, and the mean is that over all of them.

    The loss is the strategy's own, with the model as it is and in the mode that it is in; what
    other plugins add to the loss is no part of it. Nothing of the run changes by it: parameters,
    buffers (running statistics among them), gradients, the optimiser and all global random states
    are as they were.

    Args:
        batches: how many minibatches.
        seed: of the choice of samples, and of what augmentation and dropout draw.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, batches: int, seed: int) -> None:
        self.batches = positive_int("probe_batches", batches)
        self._random = RandomStream(seed)

    def state(self) -> dict[str, Any]:
        """Return where the random numbers stand, of Python's own types and tensors."""
        return self._random.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Let the random numbers stand where those of a `state` stood."""
        self._random.restore(state)

    def gradient(
        self,
        strategy: Strategy,
        dataset: Any,
        names: Sequence[str],
        collate: Collate | None = None,
        *,
        heads: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return the mean gradient of the named parameters, zero where one is unused.

        Of all processes. Parameters of lazy layers that have no shape yet are left out.

        Float32, or float64 where a parameter is, on the model's device.

        Args:
            strategy: whose model, loss and minibatch size (train_mb_size) are used.
            dataset: its minibatches are disjoint, drawn at random and all of one size; where it has
                fewer samples than one of them takes, one minibatch of all.
            names: of the parameters.
            collate: makes batches of the samples; None: that of the strategy's loader, where it has
                one, or of the data set. What makes no batch together goes one by one.
            heads: the model's output heads: the loss is then the mean cross-entropy behind another
                head in their place, fitted to the same minibatches, of which there are as many more
                as make 400 samples; see `avalanche_mgem.restriction.ridge_head`. None: the loss is
                the strategy's own.

        Raises:
            ValueError: with heads, no head can be fitted; a lazy layer would draw its weights.
        """
        model = unwrapped(strategy.model)
        waiting = uninitialized(model)
        named = dict(model.named_parameters())
        names = [name for name in names if name not in waiting]
        parameters = [named[name] for name in names]
        wide = any(p.dtype == torch.float64 for p in parameters)
        row = torch.empty(
            sum(p.numel() for p in parameters),
            dtype=torch.float64 if wide else torch.float32,
            device=parameters[0].device,
        )
        mean, count, samples = torch.zeros_like(row), 0, 0
        collate = collate or collate_of(strategy.dataloader, dataset)
        size = strategy.train_mb_size * n_processes()
        self._random = first_of_all(self._random)  # so that all draw the same minibatches
        with restored_buffers(model), self._random.active(row.device):
            drawn: Iterable[tuple[Batch, int]] = self._drawn(dataset, size, collate, heads)
            loss: BatchLoss = batch_loss
            if heads is not None:
                drawn = list(drawn)  # they pass the model twice
                fitted = fitted_head(strategy, [batch for batch, _ in drawn], heads)
                if len(fitted.classes) < 2:  # nothing to tell apart: its gradient would be zero
                    return {}
                loss = partial(loss_behind, head=fitted, heads=heads)
            for batch, own in drawn:
                write_batch_gradient(strategy, batch, parameters, row, loss=loss)
                mean += row
                count += 1
                samples = own
        _require_drawn(model, waiting)
        mean /= max(count, 1)
        average_rows(mean[None], [samples])
        parts = zip(names, positions(parameters), parameters, strict=True)
        return {name: mean[columns].view_as(p) for name, columns, p in parts}

    def _drawn(
        self, dataset: Any, size: int, collate: Collate, heads: Sequence[str] | None
    ) -> Iterator[tuple[Batch, int]]:
        """Yield this process's part of each minibatch of `size` samples, and how many they are."""
        dataset = view(dataset, "train")
        size = max(min(size, len(dataset)), 1)
        wanted = self.batches if heads is None else max(self.batches, -(-LEAST_SAMPLES // size))
        chosen = torch.randperm(len(dataset)).tolist()
        for start in range(0, min(wanted, len(dataset) // size) * size, size):
            indices = chosen[start : start + size]
            own = indices[own_part(len(indices)) or slice(None)]
            yield batches_of([[dataset[index] for index in own]], collate)[0], len(own)


def _require_drawn(model: nn.Module, waiting: Sequence[str]) -> None:
    """Raise ValueError where a lazy layer has got its shape since, and drawn its weights."""
    if len(uninitialized(model)) < len(waiting):
        raise ValueError(
            f"{waiting[0]} of a lazy layer had no shape when the gradient of a task was to be "
            "measured, which would have drawn its weights: run a batch through the model first"
        )
