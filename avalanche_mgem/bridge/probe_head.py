"""Behind which output head the gradients of tasks are compared: the model's own, or a fitted one.

See `avalanche_mgem.restriction.ridge_head` for the fitted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn

from avalanche_mgem.bridge.batches import in_bf16, swapped_minibatch
from avalanche_mgem.bridge.distributed import inner_model
from avalanche_mgem.bridge.fields import Batch, OneByOne
from avalanche_mgem.bridge.forward import acts_around_forward
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.trial import tried_on_samples
from avalanche_mgem.model.distributed import first_of_all, n_processes, unwrapped, values_of_all
from avalanche_mgem.model.head_inputs import HeadInputs, head_inputs
from avalanche_mgem.model.layers import gateable_layers
from avalanche_mgem.model.targets import inside
from avalanche_mgem.restriction.ridge_head import RidgeHead, fit_ridge_head

ProbeHead = Literal["own", "ridge", "auto"]
Chosen = Literal["own", "ridge"]
Size = Sequence[int]  # a shape

LEAST_SAMPLES = 400
"""How many samples a head is fitted to at least, where the data have as many."""


def choose_head(strategy: Strategy, probe_head: ProbeHead, heads: Sequence[str]) -> Chosen:
    """Return which head it is: "auto" is "ridge" where tasks have new heads that classify.

    Tasks have new heads where a head of Avalanche's grows or has one for each task, and where the
    forward pass of a task leaves heads unused. Nothing of the run changes by it.

    Args:
        strategy: at the start of an experience; of its data a few samples are tried.
        probe_head: as the user has it.
        heads: the names of the output heads.

    Raises:
        ValueError: "ridge", and there is no head to be fitted.
    """
    model = unwrapped(strategy.model)
    if probe_head == "own" or (probe_head == "auto" and not _may_be_new(model, heads)):
        return "own"
    try:
        seen = tried_on_samples(strategy, partial(_features_seen, strategy, heads))
    except Exception as error:  # whatever a model raises on what does not fit it
        if probe_head == "auto":
            return "own"
        raise ValueError(f"probe_head='ridge' cannot be: {error}") from error
    return "ridge" if probe_head == "ridge" or _is_new(model, heads, seen) else "own"


def has_new_head(strategy: Strategy, heads: Sequence[str], trained: Mapping[str, Size]) -> bool:
    """Whether samples of a task go through a head that has not trained yet, or has grown since.

    Args:
        strategy: at the start of an experience; of its data a few samples are tried.
        heads: the names of the output heads.
        trained: the shapes of the parameters that have trained, by their names.
    """
    if not heads:
        return False
    seen = tried_on_samples(strategy, lambda batch: _passed(strategy, heads, batch))
    model = unwrapped(strategy.model)
    used = {
        f"{name}.{own}": parameter.shape
        for name in seen.called
        for own, parameter in model.get_submodule(name).named_parameters(recurse=False)
    }
    return any(trained.get(name) != shape for name, shape in used.items())


def grows(model: nn.Module, heads: Sequence[str]) -> bool:
    """Whether a head is one of Avalanche's that adapt to an experience."""
    return any(
        isinstance(module, DynamicModule)
        for head in heads
        for module in model.get_submodule(head).modules()
    )


def features_of(strategy: Strategy, heads: Sequence[str], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the features [N, D] before the head, with their graph, and the targets [N].

    Raises:
        ValueError: the head does not classify, or its input cannot be seen; the message is why.
    """
    with inner_model(strategy), swapped_minibatch(strategy, batch):
        strategy._unpack_minibatch()
        seen = _forward(strategy, heads)
        targets = strategy.mb_y
    if seen.features is None:
        raise ValueError(f"no head is given features [N, D] (heads: {', '.join(heads) or 'none'})")
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise ValueError("the targets are no classes, a vector [N] of integers")
    if len(targets) != len(seen.features):
        raise ValueError("the head is given a part of the minibatch at a time")
    return seen.features, targets


def fitted_head(strategy: Strategy, batches: Sequence[Batch], heads: Sequence[str]) -> RidgeHead:
    """Fit a head to the features of all batches, of all processes; it is the same in all."""
    parts = [part for batch in batches for part in _parts(batch)]
    with torch.no_grad():
        own = [features_of(strategy, heads, part) for part in parts]
    features, targets = (torch.cat(each) for each in zip(*own, strict=True))
    if n_processes() == 1:
        return fit_ridge_head(features, targets)
    all_of_them = values_of_all((features.cpu(), targets.cpu()))
    together = (torch.cat(each) for each in zip(*all_of_them, strict=True))
    return first_of_all(fit_ridge_head(*together)).to(features.device)


def loss_behind(
    strategy: Strategy, batch: Batch, *, half: bool = False, head: RidgeHead, heads: Sequence[str]
) -> Tensor:
    """Return the loss on `batch` of the body behind another head; as `batches.batch_loss`."""
    with in_bf16(strategy, half):
        features, targets = features_of(strategy, heads, batch)
    return head.loss(features, targets)


def _features_seen(strategy: Strategy, heads: Sequence[str], batch: Batch) -> HeadInputs:
    """Return what the heads are given of a batch, of which features can be had."""
    if acts_around_forward(strategy):
        raise ValueError(f"{type(strategy).__name__} acts before or after the forward pass")
    features_of(strategy, heads, batch)
    return _passed(strategy, heads, batch)


def _passed(strategy: Strategy, heads: Sequence[str], batch: Batch) -> HeadInputs:
    with inner_model(strategy), swapped_minibatch(strategy, batch):
        strategy._unpack_minibatch()
        return _forward(strategy, heads)


def _forward(strategy: Strategy, heads: Sequence[str]) -> HeadInputs:
    with head_inputs(strategy.model, heads) as seen:
        strategy.forward()
    return seen


def _layers(model: nn.Module, heads: Sequence[str]) -> list[str]:
    return [name for name in gateable_layers(model) if any(inside(name, head) for head in heads)]


def _may_be_new(model: nn.Module, heads: Sequence[str]) -> bool:
    return grows(model, heads) or len(_layers(model, heads)) > 1


def _is_new(model: nn.Module, heads: Sequence[str], seen: HeadInputs) -> bool:
    return grows(model, heads) or not set(_layers(model, heads)) <= set(seen.called)


def _parts(batch: Batch) -> list[Batch]:
    return list(batch) if isinstance(batch, OneByOne) else [batch]
