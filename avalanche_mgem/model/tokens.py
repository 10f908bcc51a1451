"""Which token each row is that a mixture of experts has gathered, so that padding can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_mgem.model.operands import Outputs


class Tokens:
    """Which token of the module's input each row of a tensor is, where that is asked."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._last: Tensor | None = None
        self._n: int | None = None

    def begin(self, inputs: Sequence[Any], n: int) -> None:
        """Follow the first of the inputs, if it has n rows and another says where each goes.

        Without the routing, the rows may be those of tokens that are sorted already.
        """
        self._n = n
        tensors = [x for x in inputs if isinstance(x, Tensor) and x.shape[:-1].numel() == n]
        routed = any(not x.is_floating_point() for x in tensors[1:])
        for x in tensors[:1] if routed else ():
            self._rows[id(x)] = x, torch.arange(n, device=x.device)

    def follow(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Note which rows a function has returned, where it has been given rows."""
        known = self._rows.get(id(arguments[0])) if self._rows and arguments else None
        if known is None or not isinstance(result, Tensor) or result.ndim < 2:
            return
        rows = known[1]
        if name == "__getitem__" and isinstance(arguments[1], Tensor):
            rows = rows[arguments[1]]
        elif name == "index_select":
            rows = rows[arguments[2]]
        elif name == "repeat_interleave":
            rows = rows.repeat_interleave(arguments[1])
        if result.shape[0] == len(rows) or result.shape[:-1].numel() == len(rows):
            self._rows[id(result)] = result, rows

    def of_product(self, pair: tuple[Any, Any], seen: Outputs) -> Tensor | None:
        """Return the tokens of a product's rows, int64 [rows]; None where they are not known.

        What is made of a product's rows, and multiplied again, is not followed: where there are as
        many, they are those of the last product.
        """
        if self._n is None:
            return None
        n = len(seen.outputs)
        for factor in pair:
            known = self._rows.get(id(factor))
            if known is not None and len(known[1]) == n:
                self._last = known[1]
                return known[1]
        if self._last is not None and len(self._last) == n:
            return self._last
        operand = seen.operand
        every = operand.source.experts is None or (operand.tensor.ndim == 3 and operand.all)
        if not every or self._n == 0 or seen.inputs.shape[-2] != self._n:
            return None
        return torch.arange(n, device=seen.outputs.device) % self._n
