"""Which answers of a minibatch are right, and what cannot be counted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

import torch
from avalanche.evaluation.metrics import Mean
from torch import Tensor

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.randomness import preserved_random_state

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_ONE_NUMBER = "the output has one number a target in place of a score a class"


class RunningAccuracy:
    """The share of right answers over the minibatches so far.

    classes: those of the task that the samples are of; None where they are not known.
    """

    def __init__(self, classes: frozenset[int] | None) -> None:
        self._classes = classes
        # Avalanche's, so that the last bit is that of its accuracy metrics.
        self._mean, self._masked = Mean(), Mean()

    @property
    def accuracy(self) -> float:
        """Of the answers by argmax over all classes; NaN before the first."""
        return _result(self._mean)

    @property
    def masked(self) -> float:
        """Of the answers by argmax over the task's own classes; NaN where they are not known."""
        return _result(self._masked)

    def update(
        self, output: Tensor, targets: Tensor, *, class_dim: int, ignore_index: int | None
    ) -> None:
        """Count the answers of one minibatch, which `require_countable` has nothing against.

        Args:
            output: scores of the classes, real [N, C] or [N, C, ...]; with class_dim=-1
                [N, ..., C].
            targets: classes, integer [N] or [N, ...]. One beyond C makes the answer wrong.
            class_dim: the dimension of the output that holds the classes, 1 or -1.
            ignore_index: target that is not counted; None: all are.

        Raises:
            ValueError: a target below 0 that is not ignored.
        """
        output, targets = output.detach(), targets.long()  # uint8 would take -100 for 156
        wanted = torch.ones_like(targets, dtype=torch.bool)
        if ignore_index is not None:
            wanted = targets != ignore_index
        if bool(((targets < 0) & wanted).any()):
            raise ValueError(
                f"targets hold {int(targets[wanted].min())}, which is no class; pass "
                "ignore_index=... to leave such samples or elements out"
            )
        counted = int(wanted.sum())
        if counted == 0:
            return
        right = (torch.max(output, class_dim)[1] == targets) & wanted
        self._mean.update(float(right.sum()) / counted, counted)
        if self._classes is not None:
            answers = _masked_answers(output, class_dim, self._classes)
            right = (answers == targets) & wanted
            self._masked.update(float(right.sum()) / counted, counted)


def require_countable(metric: str, output: Any, targets: Any, *, class_dim: int | None) -> None:
    """Raise ValueError, with the metric's name and the shapes, for what cannot be counted."""
    reason = why_uncountable(output, targets, class_dim=class_dim)
    if reason is not None:
        raise _error(metric, output, targets, reason)


def require_trainable(metric: str, strategy: Strategy, *, class_dim: int | None) -> None:
    """Raise ValueError for a training minibatch that tells that evaluation could not be counted.

    A strategy may train on something else than what it evaluates: several views of each sample,
    auxiliary outputs, soft labels. So only this is judged: targets that are no classes in the data
    themselves, one number a target in place of scores, a mapping, and elements that do not fit.
    """
    output, targets = strategy.mb_output, targets_of(strategy)
    reason = why_uncountable(output, targets, class_dim=class_dim)
    if reason is None:
        return
    if not _are_classes(targets):
        soft = _is_dense(targets) and targets.is_floating_point()
        certain = not (soft and _is_class(_target_of_first_sample(strategy.experience)))
    elif not _is_dense(output):
        certain = isinstance(output, Mapping)
    else:
        one_number = tuple(output.shape) in (tuple(targets.shape), (*targets.shape, 1))
        certain = one_number or (targets.ndim > 1 and len(output) == len(targets))
    if certain:
        raise _error(metric, output, targets, reason)


def targets_of(strategy: Strategy) -> Any:
    """Return the targets of the current minibatch; None where it has none in their place."""
    try:
        return strategy.mb_y
    except (LookupError, TypeError, AssertionError):
        return None


def why_uncountable(output: Any, targets: Any, *, class_dim: int | None) -> str | None:
    """Say why the answers cannot be counted as right or wrong; None: they can."""
    if not _are_classes(targets):
        return "the targets are no classes"
    if not _is_dense(output):
        return "the output is no tensor of scores"
    if output.shape == targets.shape:
        return _ONE_NUMBER
    fitting = fitting_dims(output, targets)
    if class_dim is None and len(fitting) > 1:
        return "the classes may be dimension 1 or -1 of the output, pass class_dim to say which"
    wanted = 1 if class_dim is None else class_dim
    if wanted in fitting or (output.ndim == 2 and fitting):
        return None if output.shape[wanted] > 1 else _ONE_NUMBER
    if fitting:
        return f"the sizes fit with class_dim={fitting[0]} alone"
    return "the sizes do not fit"


def fitting_dims(output: Tensor, targets: Tensor) -> list[int]:
    """Return which of the dimensions 1 and -1 of the output may hold the classes; 1 of [N, C]."""
    if output.ndim != targets.ndim + 1:
        return []
    places = (1, -1) if output.ndim > 2 else (1,)
    rest = {place: list(output.shape) for place in places}
    for place, sizes in rest.items():
        del sizes[place]
    return [place for place, sizes in rest.items() if sizes == list(targets.shape)]


def _error(metric: str, output: Any, targets: Any, reason: str) -> ValueError:
    return ValueError(
        f"{metric} counts classes: targets integer [N] with output [N, C], or [N, ...] with "
        f"[N, C, ...]. Got targets {_told(targets)} and output {_told(output)}: {reason}. Leave "
        f"{metric} out where nothing is classified."
    )


def _result(mean: Mean) -> float:
    return float(mean.result()) if mean.weight else math.nan


def _target_of_first_sample(experience: Any) -> Any:
    """Return the target of a sample as evaluation sees it, without drawing a random number."""
    with preserved_random_state():
        try:
            return experience.dataset.eval()[0][1]
        except (LookupError, TypeError, AttributeError):
            return None


def _is_class(target: Any) -> bool:
    """Whether the target of one sample is a class, or has one for each of its elements."""
    if isinstance(target, Tensor):
        return target.dtype in _INTEGERS
    if hasattr(target, "dtype"):
        return str(target.dtype).startswith(("int", "uint"))
    return isinstance(target, Integral) and not isinstance(target, bool)


def _are_classes(targets: Any) -> bool:
    """Whether the targets of a minibatch are classes, or have one for each element."""
    return _is_dense(targets) and targets.dtype in _INTEGERS and targets.ndim > 0


def _masked_answers(output: Tensor, class_dim: int, classes: Collection[int]) -> Tensor:
    """Return the answers by argmax over some of the classes; -1 where the output has none."""
    size = output.shape[class_dim]
    columns = torch.tensor(sorted(c for c in classes if 0 <= c < size), device=output.device)
    if len(columns) == 0:
        return torch.max(output, class_dim)[1].fill_(-1)
    return columns[torch.max(output.index_select(class_dim, columns), class_dim)[1]]


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized or value.is_meta)
    )


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
