"""What several processes that train one model share of the work on a memory, or on a task's data.

Avalanche deals out each minibatch: train_mb_size is what one process sees, an experience's data set
is the same in all, and so every process keeps the same memory, of which it works on a part. One
process's checkpoint is that of all. (Of an experience without task labels, such as the parts of an
online stream without boundaries, Avalanche gives every process all samples.)

Avalanche neither wraps the model nor averages gradients: wrap it with Avalanche's
`DistributedHelper.wrap_model`, or where it grows with
`avalanche_mgem.model.distributed.data_parallel` in the strategy's `model_adaptation`. With a plain
process group, `average_gradients` in its `backward` does it too. Names and patterns are those of
the model inside the wrapper. Metrics are each process's own, of the samples that it sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_mgem.bridge.fields import Batch
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.distributed import (
    add_up,
    n_processes,
    process_index,
    unwrapped,
    values_of_all,
)


def is_wrapped(model: nn.Module) -> bool:
    """Whether DistributedDataParallel averages the model's gradients."""
    return isinstance(model, DistributedDataParallel)


def require_unused(model: nn.Module) -> None:
    """Raise ValueError if DistributedDataParallel does not expect parameters to be unused."""
    if isinstance(model, DistributedDataParallel) and (
        model.static_graph or not model.find_unused_parameters
    ):
        raise ValueError(
            "what a task freezes is unused in its steps, which DistributedDataParallel bears only "
            "with find_unused_parameters=True and static_graph=False"
        )


@contextmanager
def inner_model(strategy: Strategy) -> Iterator[None]:
    """Let the strategy's model be the one inside DistributedDataParallel.

    Forward passes through the wrapper wait for the other processes, and make it expect a backward
    pass whose gradients it averages.
    """
    own = strategy.model
    strategy.model = unwrapped(own)
    try:
        yield
    finally:
        strategy.model = own


def samples_a_step(strategy: Strategy) -> int:
    """Return how many samples a step trains on, in all processes together."""
    dealt_out = getattr(strategy.dataloader, "distributed_sampling", False)
    size: int = strategy.train_mb_size
    return size * n_processes() if dealt_out else size


def own_part(samples: int) -> slice | None:
    """Return which of so many samples are this process's; None: all, as of every other.

    Fewer than two for each process are not divided: batch normalisation takes no single sample.
    """
    processes = n_processes()
    if processes == 1 or samples < 2 * processes:
        return None
    return slice(process_index(), samples, processes)


def average_rows(rows: Tensor, samples: Sequence[int]) -> None:
    """Average rows [K, P] over all processes, each weighted by its number of samples [K].

    Those in bfloat16 are added up in float32, one at a time.
    """
    if n_processes() == 1:
        return
    if rows.dtype == torch.bfloat16:
        for row, size in zip(rows, samples, strict=True):
            average_rows(wide := row[None].float(), [size])
            row.copy_(wide[0])
        return
    weights = torch.tensor(samples, dtype=rows.dtype, device=rows.device).view(-1, 1)
    rows *= weights
    add_up(rows)
    add_up(weights)
    rows /= weights.clamp(min=1)


def is_same_memory(batches: Sequence[Batch]) -> bool:
    """Whether the batches of all processes are the same, sample for sample.

    Raises:
        ValueError: the processes do not have the same number of batches.
    """
    if n_processes() == 1:
        return True
    digests = values_of_all([_digest(batch) for batch in batches])
    numbers = [len(each) for each in digests]
    if len(set(numbers)) > 1:
        raise ValueError(
            f"memory_groups: the memories of the processes have {numbers} groups; let all see the "
            "same experiences, or keep as many samples and groups in each"
        )
    return all(each == digests[0] for each in digests)


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256()
    for part in _parts(batch):
        digest.update(part)
    return digest.hexdigest()


def _parts(batch: Batch) -> Iterator[bytes]:
    if isinstance(batch, Tensor):
        dense = batch.detach().cpu()
        dense = dense if dense.layout == torch.strided else dense.to_dense()
        yield repr((dense.dtype, dense.shape)).encode()
        yield dense.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(batch, Mapping):
        for name, field in batch.items():
            yield repr(name).encode()
            yield from _parts(field)
    elif isinstance(batch, list | tuple):
        for field in batch:
            yield from _parts(field)
    else:
        yield repr(batch).encode()
