"""Whether numbers are finite, and which are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all numbers are finite.

    An accelerator is waited for once. The root of the sum of squares is taken first, which is one
    pass and no new tensor; where that overflows, each number is looked at.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(_values(tensor))
    if not kinds:
        return True
    flags = [torch.stack(torch._foreach_norm(same)).isfinite().all() for same in kinds.values()]
    if bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()):
        return True
    return all(is_finite(tensor) for same in kinds.values() for tensor in same)


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
