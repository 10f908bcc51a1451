"""Whether samples make the batches that will be wanted of them, tried before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from avalanche_mgem.bridge.batches import swapped_minibatch
from avalanche_mgem.bridge.collation import Transform, batches_of, collate_of, view
from avalanche_mgem.bridge.distributed import inner_model
from avalanche_mgem.bridge.fields import Batch, OneByOne, samples_of
from avalanche_mgem.bridge.forward import loss_of_minibatch
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.distributed import unwrapped
from avalanche_mgem.model.freezing import restored_buffers
from avalanche_mgem.model.lazy import uninitialized
from avalanche_mgem.model.randomness import preserved_random_state

T = TypeVar("T")

_SAMPLES = 8  # enough that some differ in size where many do


def require_positions(strategy: Strategy, what: str) -> None:
    """Raise ValueError where samples cannot be taken by their positions.

    Args:
        strategy: at the start of an experience.
        what: takes them, for the error.
    """
    dataset, loader = strategy.experience.dataset, strategy.dataloader
    for data in (dataset, getattr(loader, "dataset", dataset)):
        has_positions = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        if isinstance(data, IterableDataset) or not has_positions:
            raise ValueError(
                f"{what} takes samples of the data set by their positions, and an iterable data "
                f"set has none: use one with __len__ and __getitem__, got {type(data).__name__}"
            )
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        raise ValueError(
            f"{what} makes batches of single samples, and this strategy's loader takes whole "
            "batches from the data set (batch_size=None): give the loader a batch_size"
        )


def try_memory(strategy: Strategy, transform: Transform, *, grouped: bool, draws: bool) -> None:
    """Make a batch of a few samples as the memory will, and unpack it.

    Nothing of the run changes by it. The model is run, without gradients, only where the samples
    have other shapes or kinds in evaluation than in training, and no lazy layer waits for its
    first forward pass.

    Args:
        strategy: at the start of an experience.
        transform: that of the memory.
        grouped: whether many groups must go through the model together.
        draws: whether samples of a group are to be drawn.

    Raises:
        ValueError: names the argument that does not suit the samples.
    """
    batch, error = _attempt(strategy, transform)
    if transform == "eval":
        trained, _ = _attempt(strategy, "train")
        if trained is not None:
            _require_as_good(strategy, batch, error, trained)
    if error is not None:
        raise ValueError(f"no batch can be made of the memory's samples: {error}") from error
    if draws:
        _require_divisible(strategy, transform, batch)
    if grouped and isinstance(batch, OneByOne):
        raise ValueError(
            "memory_passes='grouped' cannot be: the samples differ in size and go one by one"
        )


def try_probe(strategy: Strategy) -> None:
    """Make a batch of a few samples as a gradient probe will, and unpack it.

    Raises:
        ValueError: none can be made.
    """
    _, error = _attempt(strategy, "train")
    if error is not None:
        raise ValueError(f"no batch can be made of the samples to probe: {error}") from error


def tried_on_samples(strategy: Strategy, function: Callable[[Batch], T]) -> T:
    """Return what a function of a batch of a few samples returns; nothing of the run changes by it.

    No gradient is recorded in it. Of samples that make no batch together it is given one.

    Args:
        strategy: at the start of an experience.
        function: may run the model.
    """
    batch = _batch(strategy, "train", _SAMPLES)
    with _unchanged(unwrapped(strategy.model)):
        return function(batch[0] if isinstance(batch, OneByOne) else batch)


def _attempt(strategy: Strategy, transform: Transform) -> tuple[Batch | None, Exception | None]:
    """Return a batch of some samples, or what has gone wrong.

    All attempts draw the same random numbers.
    """
    try:
        batch = _batch(strategy, transform, _SAMPLES)
        with preserved_random_state():
            for part in batch if isinstance(batch, OneByOne) else [batch]:
                with swapped_minibatch(strategy, part):
                    strategy._unpack_minibatch()
    except Exception as error:  # whatever data sets, collate functions and strategies raise
        return None, error
    return batch, None


def _batch(strategy: Strategy, transform: Transform, size: int) -> Batch:
    dataset = view(strategy.experience.dataset, transform)
    collate = collate_of(strategy.dataloader, strategy.experience.dataset)
    with preserved_random_state():
        samples = [dataset[index] for index in _spread(len(dataset), size)]
        return batches_of([samples], collate)[0]


def _spread(length: int, size: int) -> list[int]:
    """Return `size` positions of so many, or all, from the first to the last."""
    return sorted({round(at) for at in np.linspace(0, length - 1, size)})


def _require_as_good(
    strategy: Strategy, batch: Batch | None, error: Exception | None, trained: Batch
) -> None:
    """Raise ValueError where training's transformations suit and those of evaluation do not."""
    if isinstance(batch, OneByOne) and not isinstance(trained, OneByOne):
        error = ValueError("the samples differ in size")
    elif batch is not None and _layout(batch) != _layout(trained):
        failed = _failure(strategy, batch)
        error = failed if failed is not None and _failure(strategy, trained) is None else None
    if error is not None:
        raise ValueError(
            "memory_transform='eval' reads the memory's samples through the data set's evaluation "
            f"transformations, and those make no batch to train on ({error}), while the training "
            "transformations do: pass memory_transform='train', or mend the others"
        ) from error


def _failure(strategy: Strategy, batch: Batch) -> Exception | None:
    """Return what goes wrong when the model is run on a batch; None: nothing, or not tried."""
    model = unwrapped(strategy.model)
    if uninitialized(model):
        return None
    part = batch[0] if isinstance(batch, OneByOne) else batch
    try:
        with _unchanged(model), inner_model(strategy), swapped_minibatch(strategy, part):
            strategy._unpack_minibatch()
            loss_of_minibatch(strategy)
    except Exception as error:  # whatever a model raises on what does not fit it
        return error
    return None


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random states back on the way out."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with restored_buffers(model), preserved_random_state(), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _require_divisible(strategy: Strategy, transform: Transform, batch: Batch) -> None:
    """Raise ValueError unless samples can be taken from a batch."""
    if isinstance(batch, OneByOne):
        return
    one = _batch(strategy, transform, 1)
    size = len(_spread(len(strategy.experience.dataset), _SAMPLES))
    try:
        for each, samples in ((one, 1), (batch, size)):
            samples_of(each, torch.tensor([0]), samples)
        if len(list(_leaves(one))) != len(list(_leaves(batch))):
            raise ValueError("it has a list of samples")
    except ValueError as error:
        raise ValueError(
            f"memory_batch_size draws samples from the memory's batches, and these cannot be "
            f"divided ({error}): leave it out"
        ) from error


def _layout(batch: Batch) -> Any:
    """Return what a batch is made of, but for how many samples and which."""
    if isinstance(batch, Tensor):
        return batch.dtype, batch.shape[1:]
    if isinstance(batch, Mapping):
        return {name: _layout(field) for name, field in batch.items()}
    if isinstance(batch, list | tuple):
        return [_layout(field) for field in batch]
    return type(batch)


def _leaves(batch: Batch) -> Iterator[Any]:
    if isinstance(batch, Mapping | list | tuple):
        for field in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _leaves(field)
    else:
        yield batch
