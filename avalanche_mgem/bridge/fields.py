"""A minibatch is whatever a collate function makes; here it is moved, cut and joined as such."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Batch = Any  # a tensor, or a list, tuple or mapping of batches
MemoryFormat = Literal["preserve", "channels_last"]


class OneByOne(list[Batch]):
    """Samples that make no batch together, as those of differing sizes: a batch of one for each.

    Their loss is the mean of the batches' losses, as that of a batch is the mean over its samples.
    """


def to_device(batch: Batch, device: torch.device | None) -> Batch:
    """Return a new batch of the same kind whose tensors are on `device` (None: where they are)."""
    if isinstance(batch, Tensor):
        return batch if device is None else batch.to(device)
    if isinstance(batch, Mapping | list | tuple):
        return _field_by_field([batch], lambda fields: to_device(fields[0], device))
    return batch


def in_format(batch: Batch, memory_format: MemoryFormat) -> Batch:
    """Return the batch with its images, tensors [N, C, H, W] of floats, in a layout of memory."""
    if memory_format == "preserve":
        return batch
    if isinstance(batch, Tensor):
        images = batch.ndim == 4 and batch.is_floating_point() and batch.layout == torch.strided
        return batch.contiguous(memory_format=torch.channels_last) if images else batch
    if isinstance(batch, OneByOne):
        return OneByOne(in_format(sample, memory_format) for sample in batch)
    if isinstance(batch, Mapping | list | tuple):
        return _field_by_field([batch], lambda fields: in_format(fields[0], memory_format))
    return batch


def samples_of(batch: Batch, chosen: slice | Tensor, size: int) -> Batch:
    """Return some of the samples of a batch of `size` samples.

    Raises:
        ValueError: a field is no tensor with one entry for each sample.
    """
    if isinstance(batch, OneByOne):
        if isinstance(chosen, slice):
            return OneByOne(batch[chosen])
        return OneByOne(batch[index] for index in chosen.tolist())
    if isinstance(batch, Tensor):
        if batch.ndim == 0 or len(batch) != size:
            raise ValueError(f"a batch of {size} samples has a field of shape {batch.shape}")
        if isinstance(chosen, slice):
            return batch[chosen]
        return batch.index_select(0, chosen.to(batch.device))
    return _field_by_field([batch], lambda fields: samples_of(fields[0], chosen, size))


def joined(batches: Sequence[Batch]) -> Batch:
    """Return one batch with the samples of all.

    Raises:
        ValueError: a field is no tensor, or its samples differ in shape or kind.
    """
    if any(isinstance(batch, OneByOne) for batch in batches):
        raise ValueError("the samples differ in size")
    if isinstance(batches[0], Tensor):
        if batches[0].ndim == 0:
            raise ValueError("a field is one number for all samples")
        if len({(field.shape[1:], field.dtype, field.device) for field in batches}) > 1:
            raise ValueError("the samples differ in shape, kind or device")
        return torch.cat(list(batches))
    return _field_by_field(batches, joined)


def own_storage(batch: Batch) -> Batch:
    """Return the batch with tensors that are no part of larger ones."""
    if isinstance(batch, Tensor):
        if batch.layout != torch.strided:
            return batch
        whole = batch.untyped_storage().nbytes() == batch.numel() * batch.element_size()
        return batch if whole else batch.clone()
    if isinstance(batch, Mapping | list | tuple):
        return _field_by_field([batch], lambda fields: own_storage(fields[0]))
    return batch


def plain(batch: Batch) -> Batch:
    """Return the batch in Python's own containers, as safe loaders of files know them.

    Raises:
        ValueError: a field is no tensor, number or string.
    """
    if isinstance(batch, Tensor):
        return own_storage(batch)
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf":
        return torch.from_numpy(batch.copy())
    if isinstance(batch, Mapping):
        return {str(name): plain(field) for name, field in batch.items()}
    if isinstance(batch, list | tuple):
        return [plain(field) for field in batch]
    if batch is None or isinstance(batch, str | int | float):
        return batch
    raise ValueError(
        f"a batch has a field of type {type(batch).__name__}, which no checkpoint of a Trainer "
        "keeps: let the collate function make tensors"
    )


def _field_by_field(batches: Sequence[Batch], function: Callable[[list[Batch]], Batch]) -> Batch:
    """A batch of the kind of the first, of what `function` makes of each field of all."""
    first = batches[0]
    if isinstance(first, Mapping):
        made = {key: function([batch[key] for batch in batches]) for key in first}
        return type(first)(made)  # type: ignore[call-arg]  # a BatchEncoding stays one
    if not isinstance(first, list | tuple):
        raise ValueError(f"a batch has a field of type {type(first).__name__}")
    fields = [function(list(column)) for column in zip(*batches, strict=True)]
    return type(first)(*fields) if hasattr(first, "_fields") else type(first)(fields)
