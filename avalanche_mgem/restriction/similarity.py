"""How alike two tasks' gradients are, and how many modules are to train by it.

Source of the idea: the update-magnitude paper (arXiv 2602.20796, algorithm 1): a cosine below a
threshold means unrelated tasks, on which more modules train. What the paper leaves open is said to
be ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from avalanche_mgem.arguments import as_list, bounded_int, finite, instance, one_of, real_tensor

Metric = Literal["cosine", "sign"] | Callable[[Tensor, Tensor], float]
Schedule = Literal["hard", "graded"]

_CHUNK = 1 << 22  # positions that are widened to float64 at a time


@dataclass(frozen=True)
class Decision:
    """Which modules train.

    Args:
        similarity: of the two gradients over all modules; None where nothing was compared.
        module_similarities: the same by module; without those that had nothing to compare.
        trained: the names of the modules that train, from the output side.
        modules: the names of all modules, from the output side.
        probe_head: "own" or "ridge", the output head that both gradients were taken behind; None
            where nothing was compared.
    """

    similarity: float | None
    module_similarities: dict[str, float]
    trained: tuple[str, ...]
    modules: tuple[str, ...]
    probe_head: str | None = None


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of two vectors [P], in [-1, 1]; 0 where one of them is zero.

    Products are summed in float64.

    Raises:
        FloatingPointError: a vector that is not finite.
    """
    _require_vectors(one, other)
    sums = torch.zeros(3, dtype=torch.float64, device=one.device)
    for a, b in _chunks(one, other):
        sums += torch.stack((a @ b, a @ a, b @ b))
    dot, size, other_size = (float(value) for value in sums)
    if not math.isfinite(size + other_size):
        raise FloatingPointError("a gradient is not finite: its cosine is not defined")
    if size == 0 or other_size == 0:
        return 0.0
    return max(-1.0, min(1.0, dot / (math.sqrt(size) * math.sqrt(other_size))))


def sign_agreement(one: Tensor, other: Tensor) -> float:
    """Return the share of positions of one sign minus that of opposite signs, in [-1, 1] (ours).

    Of the positions at which both vectors [P] are nonzero; 0 where there is none.

    Raises:
        FloatingPointError: a vector that is not finite.
    """
    _require_vectors(one, other)
    total = torch.zeros(2, dtype=torch.float64, device=one.device)
    for a, b in _chunks(one, other):
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise FloatingPointError("a gradient is not finite: its signs do not agree with any")
        signs = a.sign() * b.sign()
        total += torch.stack((signs.sum(), signs.abs().sum()))
    agreeing, compared = total.tolist()
    return float(agreeing / compared) if compared else 0.0


def similarities(
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]],
    metric: Metric = "cosine",
) -> tuple[float | None, dict[str, float]]:
    """Return how alike two gradients are over all groups together, and in each group.

    What only one of them has, or has in another shape, is left out; a group with nothing left is
    not in the result, and with no group left the first value is None.

    Args:
        one: the gradients of parameters by their names.
        other: the same of the other gradient.
        groups: names of parameters by group.
        metric: "cosine", "sign" (see `sign_agreement`), or a callable that takes two vectors [P].

    Raises:
        FloatingPointError: a gradient that is not finite.
        ValueError: a metric that returns no finite number.
    """
    function = _function(metric)
    for argument, given in (("one", one), ("other", other), ("groups", groups)):
        instance(argument, given, Mapping, what="a mapping by name")
    for names in groups.values():
        as_list("groups", names, str, what="names of parameters by group")
    shared = {
        group: [n for n in names if n in one and n in other and one[n].shape == other[n].shape]
        for group, names in groups.items()
    }
    by_group = {
        group: _compared(function, _vector(one, names), _vector(other, names))
        for group, names in shared.items()
        if names
    }
    if not by_group:
        return None, {}
    every = [name for names in shared.values() for name in names]
    return _compared(function, _vector(one, every), _vector(other, every)), by_group


def check_metric(metric: object) -> None:
    """Raise ValueError where it is neither the name of a metric nor a callable."""
    if not callable(metric) or isinstance(metric, type):
        one_of("metric", metric, ("cosine", "sign"))


def n_trained(
    similarity: float,
    low: int,
    high: int,
    threshold: float = 0.0,
    schedule: Schedule = "hard",
) -> int:
    """Return how many modules train, in [low, high]: the more the less alike the tasks are.

    Args:
        similarity: s, of the gradients of two tasks; for "graded" it is taken into [-1, 1].
        low: how many train on tasks that are alike.
        high: how many train on tasks that are not.
        threshold: for "hard".
        schedule: "hard": high where s < threshold, else low (as published). "graded" (ours):
            round(high + (low - high)(s + 1)/2), halves up.

    Raises:
        ValueError: a number of modules that is negative, low > high, a similarity or threshold
            that is not finite, another schedule.
    """
    _check_range(low, high, threshold)
    similarity = finite("similarity", similarity)
    if one_of("schedule", schedule, ("hard", "graded")) == "hard":
        return high if similarity < threshold else low
    similarity = max(-1.0, min(1.0, similarity))
    return math.floor(high + (low - high) * (similarity + 1) / 2 + 0.5)


def trained_by_module(
    names: Sequence[str],
    module_similarities: Mapping[str, float],
    low: int,
    high: int,
    threshold: float = 0.0,
) -> tuple[str, ...]:
    """Return the modules that train where each decides on its own (ours).

    A module trains where its own similarity is below the threshold, or where it has none. Where
    these are more than `high`, those nearest to the output do; where they are fewer than `low`, the
    nearest of the others are added.

    Args:
        names: of all modules, from the output side.
        module_similarities: by name.
        low: the fewest that train.
        high: the most that train.
        threshold: of similarity.

    Raises:
        ValueError: as `n_trained`.
    """
    names = as_list("names", names, str, what="a list of names")
    instance("module_similarities", module_similarities, Mapping, what="similarities by name")
    for similarity in module_similarities.values():
        finite("module_similarities", similarity)
    _check_range(low, high, threshold)
    wanting = [n for n in names if module_similarities.get(n, -math.inf) < threshold]
    others = [n for n in names if n not in wanting]
    chosen = {*wanting[:high], *others[: max(0, low - len(wanting))]}
    return tuple(name for name in names if name in chosen)


def _check_range(low: int, high: int, threshold: float) -> None:
    if bounded_int("low", low, minimum=0) > bounded_int("high", high, minimum=0):
        raise ValueError(f"high must be >= low, got low={low} and high={high}")
    finite("threshold", threshold)


def _function(metric: Metric) -> Callable[[Tensor, Tensor], float]:
    check_metric(metric)
    if callable(metric):
        return metric
    return {"cosine": cosine, "sign": sign_agreement}[metric]


def _compared(function: Callable[[Tensor, Tensor], float], one: Tensor, other: Tensor) -> float:
    value = function(one, other)
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metric must return a number, got {value!r}") from error
    return finite("metric", number)


def _vector(gradients: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in names])


def _require_vectors(one: Tensor, other: Tensor) -> None:
    for name, vector in (("one", one), ("other", other)):
        if real_tensor(name, vector, shape="[P]").dtype == torch.bool:
            raise ValueError(f"{name} must be a vector of numbers, got {vector.dtype}")


def _chunks(one: Tensor, other: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    if one.shape != other.shape:
        raise ValueError(
            f"one and other must be of one length, got {tuple(one.shape)} and {tuple(other.shape)}"
        )
    other = other.to(one.device)
    for start in range(0, len(one), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        yield one[chunk].double(), other[chunk].double()
