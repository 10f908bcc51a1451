"""What a weight becomes on its way to a product, and whose output each row of the product is.

A weight is one matrix, or one of each expert. Slices, copies, transposes and casts of it are
followed: an `Operand` knows of which experts it is and which way round it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avalanche_mgem.model.sources import Product

# Where the two factors are, by the names of torch's functions and methods.
_FACTORS = {
    "linear": (0, 1),
    "matmul": (0, 1),
    "__matmul__": (0, 1),
    "__rmatmul__": (1, 0),
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "_grouped_mm": (0, 1),
    "grouped_mm_fallback": (0, 1),  # transformers' own, where torch has none
}
_NAMES = {"input": 0, "weight": 1, "mat1": 0, "mat2": 1, "batch1": 0, "batch2": 1, "other": 1}


@dataclass(frozen=True)
class Operand:
    """A tensor that was made of a weight.

    Args:
        tensor: the tensor.
        source: the weight.
        experts: of which expert each matrix is: int for [., .], int64 [b] for [b, ., .]; None where
            it is of all, in order, or where the weight is one matrix.
        flipped: whether the last two dimensions are those of the weight in the other order.
    """

    tensor: Tensor
    source: Product
    experts: int | Tensor | None = None
    flipped: bool = False

    @property
    def all(self) -> bool:
        """Whether it has the matrices of all experts, in order."""
        return self.experts is None

    def followed(self, name: str, arguments: Sequence[Any], result: Tensor) -> Operand | None:
        """Return what a function has made of it; None for what is no matrix of the weight's."""
        tensor, new = self.tensor, replace(self, tensor=result)
        if self.source.experts is None or isinstance(self.experts, int):
            return self._turned(new) if result.ndim == 2 else None
        if result.ndim == 2 and tensor.ndim == 3:
            expert = self._expert(arguments, result)
            return None if expert is None else replace(self._turned(new), experts=expert)
        if result.ndim == 2:  # [experts * ., .], as it is kept
            return new if result.shape == tensor.shape else None
        if result.ndim != 3:
            return None
        if name in ("__getitem__", "index_select"):
            return replace(new, experts=self._experts(arguments[-1]))
        return self._turned(new) if len(result) in (len(tensor), self.source.experts) else None

    def _turned(self, new: Operand) -> Operand:
        old, shape = self.tensor.shape[-2:], new.tensor.shape[-2:]
        if old != shape:
            turned = old[::-1] == shape
        elif not _shares_memory(self.tensor, new.tensor):
            turned = False  # a copy of a square matrix
        else:
            strides = self.tensor.stride()[-2:]
            turned = strides[0] != strides[1] and new.tensor.stride()[-2:] == strides[::-1]
        return replace(new, flipped=self.flipped != turned)

    def _expert(self, arguments: Sequence[Any], result: Tensor) -> int | None:
        """Of which expert a matrix is that was taken out."""
        own = self._experts(slice(None))
        if _shares_memory(self.tensor, result):
            place = int(result.storage_offset()) - int(self.tensor.storage_offset())
            index = place // max(self.tensor.stride(0), 1)
        else:
            given = arguments[1] if len(arguments) > 1 else None
            if not isinstance(given, int | Tensor):
                return None
            index = int(given)
        return index if self.experts is None else int(own[index])

    def _experts(self, index: Any) -> Tensor:
        experts = self.experts
        if not isinstance(experts, Tensor):
            experts = torch.arange(self.source.experts or 1, device=self.tensor.device)
        return experts[index]


@dataclass(frozen=True)
class Outputs:
    """The rows of a product with a weight.

    Args:
        operand: what the weight had become.
        inputs: what was multiplied, [.., in], a row for each of the product's, or to be repeated.
        outputs: what came out, [rows, n].
        experts: whose they are: one expert's, int64 [rows], or None where the weight is one matrix.
        counted: bool [rows], those that are anyone's; None: all.
        has_bias: whether the bias has been added.
    """

    operand: Operand
    inputs: Tensor
    outputs: Tensor
    experts: int | Tensor | None
    counted: Tensor | None
    has_bias: bool


def factors(
    name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[Any, Any] | None:
    """Return the two factors of a function's product; None for what is no product."""
    if name not in _FACTORS:
        return None
    found = [arguments[i] if i < len(arguments) else None for i in _FACTORS[name]]
    for keyword, place in _NAMES.items():
        if found[place] is None:
            found[place] = keywords.get(keyword)
    return found[0], found[1]


def outputs_of(
    name: str,
    operand: Operand,
    pair: tuple[Tensor, Tensor],
    result: Tensor,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
) -> Outputs:
    """Return the rows of a product.

    Args:
        name: of the function.
        operand: which of the factors it is.
        pair: the factors.
        result: the product.
        arguments: of the function.
        keywords: of the function.

    Raises:
        ValueError: the weight's units do not lie where they are said to.
    """
    first = pair[0] is operand.tensor
    _check(name, operand, first=first)
    inputs, outputs = pair[1 if first else 0].detach(), result.detach()
    if first:
        inputs, outputs = inputs.transpose(-2, -1), outputs.transpose(-2, -1)
    elif outputs.ndim == 1:
        inputs, outputs = inputs[None], outputs[None]
    experts, counted = _owners(name, operand, inputs, outputs, arguments, keywords)
    return Outputs(
        operand,
        inputs.expand(*outputs.shape[:-1], -1),
        outputs.flatten(0, -2),
        experts,
        counted,
        has_bias=_has_bias(name, arguments, keywords),
    )


def _check(name: str, operand: Operand, *, first: bool) -> None:
    """See that the dimension that a product keeps is that of the units."""
    kept = -2 if (first or name == "linear") != operand.flipped else -1
    n_dims = 2 if operand.source.experts is None else 3
    if kept != operand.source.dim - n_dims:
        source, lie = operand.source, n_dims + kept
        raise ValueError(
            f"{type(source.owner).__name__}.{source.weight} has its rows along dimension {lie} of "
            f"{n_dims}, not {source.dim}: leave it out with target_modules"
        )


def _owners(
    name: str,
    operand: Operand,
    inputs: Tensor,
    outputs: Tensor,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
) -> tuple[int | Tensor | None, Tensor | None]:
    """Whose each row is, and which are anyone's."""
    experts, n = operand.experts, operand.source.experts
    if n is None or isinstance(experts, int):
        return experts, None
    if "grouped_mm" in name:
        ends = keywords["offs"] if "offs" in keywords else arguments[2]
        rows = torch.arange(len(outputs), device=outputs.device, dtype=ends.dtype)
        own = torch.searchsorted(ends, rows, right=True)
        return own.clamp(max=n - 1), own < n
    if experts is not None:
        return experts.repeat_interleave(outputs.shape[1]), None
    # Where every expert multiplies all tokens, those that are not routed to it are zeros.
    own = torch.arange(n, device=outputs.device).repeat_interleave(outputs.shape[1])
    routed = inputs.ne(0).any(-1).expand(outputs.shape[:-1])
    return own, routed.flatten()


def _has_bias(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    given = arguments[2] if name == "linear" and len(arguments) > 2 else keywords.get("bias")
    return name in ("addmm", "baddbmm") or isinstance(given, Tensor)


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
