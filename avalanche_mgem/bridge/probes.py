"""The gradient of the loss on some data, measured without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.bridge.batches import write_batch_gradient
from avalanche_mgem.bridge.fields import Batch
from avalanche_mgem.model.freezing import restored_buffers
from avalanche_mgem.model.gradients import positions
from avalanche_mgem.model.randomness import RandomStream


class GradientProbe:
    """Measures mean gradients over a few minibatches.

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

    def gradient(self, strategy: Any, dataset: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the mean gradient of the named parameters, zero where one is unused.

        Float32, or float64 where a parameter is, on the model's device.

        Args:
            strategy: whose model, loss and minibatch size (train_mb_size) are used.
            dataset: its minibatches are disjoint, drawn at random and all of one size; where it has
                fewer samples than one of them takes, one minibatch of all.
            names: of the parameters.
        """
        named = dict(strategy.model.named_parameters())
        parameters = [named[name] for name in names]
        wide = any(p.dtype == torch.float64 for p in parameters)
        row = torch.empty(
            sum(p.numel() for p in parameters),
            dtype=torch.float64 if wide else torch.float32,
            device=parameters[0].device,
        )
        mean, count = torch.zeros_like(row), 0
        with restored_buffers(strategy.model), self._random.active(row.device):
            for batch in self._drawn(dataset, strategy.train_mb_size):
                write_batch_gradient(strategy, batch, parameters, row)
                mean += row
                count += 1
        mean /= max(count, 1)
        parts = zip(names, positions(parameters), parameters, strict=True)
        return {name: mean[columns].view_as(p) for name, columns, p in parts}

    def _drawn(self, dataset: Any, size: int) -> Iterator[Batch]:
        dataset = dataset.train() if hasattr(dataset, "train") else dataset
        collate = getattr(dataset, "collate_fn", None) or default_collate
        size = min(size, len(dataset))
        chosen = torch.randperm(len(dataset)).tolist()
        for start in range(0, min(self.batches, len(dataset) // max(size, 1)) * size, max(size, 1)):
            yield collate([dataset[index] for index in chosen[start : start + size]])
