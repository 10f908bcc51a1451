"""A change of a model's structure that happens as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer


@contextmanager
def all_or_nothing(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Put model and optimiser back as they were where the body raises.

    What is put back are the modules and their attributes, hooks and flags, which parameters require
    a gradient and the gradients that they have, the optimiser's groups and its state. The numbers
    in tensors are not copied: the body may replace a tensor and must not write to one.

        with all_or_nothing(model):
            model.head = nn.Linear(4, 2)
            raise ValueError  # model.head is the former one again
    """
    undo = [_Attributes(module) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    if optimizer is not None:
        undo.append(_Attributes(optimizer))
        groups = [(group, {**group, "params": [*group["params"]]}) for group in _groups(optimizer)]
    else:
        groups = []
    try:
        yield
    except BaseException:
        for saved in undo:
            saved.restore()
        for group, content in groups:
            group.clear()
            group.update(content)
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        raise


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return optimizer.param_groups


class _Attributes:
    """The attributes of an object; of dictionaries, lists and sets what is in them, too."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._attributes = dict(vars(owner))
        self._contents = {
            name: value.copy()
            for name, value in self._attributes.items()
            if isinstance(value, dict | list | set)
        }

    def restore(self) -> None:
        """Put them back, in the same containers: handles of hooks refer to these."""
        own = vars(self._owner)
        own.clear()
        own.update(self._attributes)
        for name, content in self._contents.items():
            container = self._attributes[name]
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
