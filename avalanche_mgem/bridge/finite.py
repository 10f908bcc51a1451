"""Whether numbers are finite, and which are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# The products of two such numbers are far below the largest in float32.
_SMALL = 1e18


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all numbers are finite.

    An accelerator is waited for once. The root of the sum of squares is taken first, which is one
    pass and no new tensor; where that overflows, each number is looked at.
    """
    values = [_values(tensor) for tensor in tensors]
    if len(values) == 1 and values[0].numel() == 1:
        return math.isfinite(values[0].item())
    if not values or math.isfinite(size_of(values).item()):
        return True
    return all(map(is_finite, values))


def have_small_products(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite, and all products of two of the tensors in float32 are too.

    Of a tensor its norm will do.
    """
    return size_of(tensors).item() < _SMALL


def size_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return a number in float64 that is finite only if all numbers are; on the first's device.

    It may be infinite where they are finite but large. Nothing is waited for.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(_values(tensor))
    sizes = [_sum_of_norms(same) for same in kinds.values()]
    if len(sizes) == 1:
        return sizes[0]
    return torch.stack([size.to(sizes[0].device) for size in sizes]).sum()


def _sum_of_norms(same: list[Tensor]) -> Tensor:
    """Of tensors of one device and dtype."""
    if len(same) == 1 and same[0].numel() == 1:
        return same[0].double().abs().reshape(())
    return torch.stack(torch._foreach_norm(same)).sum(dtype=torch.float64)


def row_reason(rows: Tensor, parameters: Mapping[str, slice], groups: Sequence[int]) -> str | None:
    """Return which memory row is not finite, and in which parameter; None: all are.

    Args:
        rows: [K, P].
        parameters: the positions of each by its name.
        groups: how many rows each past task has; further rows are the open task's.
    """
    for index, row in enumerate(rows):
        for name, columns in parameters.items():
            if not is_finite(row[columns]):
                return f"the memory row of {_label(index, groups)} holds NaN or Inf in {name!r}"
    return None


def _label(index: int, groups: Sequence[int]) -> str:
    for task, count in enumerate(groups):
        if index < count:
            return f"task {task}, group {index}"
        index -= count
    return f"the open task, group {index}"


def _values(tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided:
        coalesced = tensor.coalesce() if tensor.layout == torch.sparse_coo else tensor
        tensor = coalesced.values()
    # Of floats of 8 bits torch takes no norm.
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite."""
    return bool(_values(tensor).isfinite().all())
