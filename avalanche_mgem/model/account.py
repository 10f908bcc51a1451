"""What of a model is gated and what is not: the share of its trainable parameters, by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.targets import inside, join
from avalanche_mgem.model.units import GatedLayer

MOST_LEFT_OUT = 0.1
"""Share of the trainable parameters that may be left out without a warning."""

_NORM = re.compile(r"norm(\dd)?$", re.IGNORECASE)
_EMBEDDING = re.compile("embedding", re.IGNORECASE)
_SHOWN = 4  # names of a class


@dataclass(frozen=True)
class Account:
    """How many trainable parameters are gated, and what the others are.

    Args:
        trainable: how many there are.
        gated: how many lie in rows that a step may hold.
        heads: names of the output heads, which always train.
        heads_from: "given", "graph" (seen in a forward pass) or "names" (class, name or order).
        left_out: for each class of modules that are neither gated nor heads, embeddings or norms:
            how many trainable parameters they have, and their names.
    """

    trainable: int
    gated: int
    heads: tuple[str, ...]
    heads_from: str
    left_out: Mapping[str, tuple[int, tuple[str, ...]]]

    @property
    def share(self) -> float:
        """The share of the trainable parameters that is gated, in [0, 1]."""
        return self.gated / self.trainable if self.trainable else 0.0

    @property
    def share_left_out(self) -> float:
        """The share that is neither gated nor in heads, embeddings or norms, in [0, 1]."""
        left = sum(count for count, _ in self.left_out.values())
        return left / self.trainable if self.trainable else 0.0

    def __str__(self) -> str:
        """What it says, in a line."""
        parts = [f"{self.share:.0%} of {self.trainable} trainable parameters are gated"]
        parts += [f"heads ({self.heads_from}): {', '.join(self.heads) or 'none'}"]
        parts += [f"not gated: {self.describe_left_out()}"] if self.left_out else []
        return "; ".join(parts)

    def describe_left_out(self) -> str:
        """Return the classes that are left out, the largest first, with names."""
        largest = sorted(self.left_out.items(), key=lambda item: -item[1][0])
        return "; ".join(
            f"{kind} {count / self.trainable:.0%} ({_listed(names)})"
            for kind, (count, names) in largest
        )


def account(
    model: nn.Module, layers: Iterable[GatedLayer], heads: Sequence[str], heads_from: str
) -> Account:
    """Return what of `model` is gated where `layers` are and `heads` are its heads.

    What lazy modules have before their first forward pass has no number of parameters yet.
    """
    gated = {id(rows.parameter) for layer in layers for rows in layer.rows}
    counted: set[int] = set()
    trainable = 0
    n_gated = 0
    left: dict[str, tuple[int, tuple[str, ...]]] = {}
    for name, module in model.named_modules():
        known = _is_declared(module) or any(inside(name, head) for head in heads)
        for own, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in counted or is_lazy(parameter):
                continue
            counted.add(id(parameter))
            trainable += parameter.numel()
            if id(parameter) in gated:
                n_gated += parameter.numel()
            elif not (known or "bias" in own):
                kind = type(module).__name__
                count, names = left.get(kind, (0, ()))
                left[kind] = count + parameter.numel(), (*names, join(name, own))
    return Account(trainable, n_gated, tuple(heads), heads_from, left)


def _is_declared(module: nn.Module) -> bool:
    kind = type(module).__name__
    return bool(_NORM.search(kind) or _EMBEDDING.search(kind))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
