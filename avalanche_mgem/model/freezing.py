"""Parts of a model held still while it trains: parameters, and what moves without a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Freezer:
    """Freezes parameters and running statistics by their names, and puts all back.

    A frozen parameter needs no gradient and has none, so that no optimiser touches it or its state,
    weight decay included. What keeps running statistics is in evaluation mode, so that they stand;
    dropout goes on.
    """

    def __init__(self) -> None:
        self._parameters: list[str] = []  # which required a gradient before
        self._statistics: dict[str, dict[str, Tensor]] = {}  # by submodule

    def freeze(
        self, model: nn.Module, parameters: Iterable[str], statistics: Iterable[str]
    ) -> None:
        """Freeze these parameters, and the running statistics of these submodules.

        What is frozen already stays somebody else's.
        """
        named = dict(model.named_parameters())
        for name in parameters:
            if named[name].requires_grad:
                named[name].requires_grad_(False)
                named[name].grad = None
                self._parameters.append(name)
        for name in statistics:
            submodule = model.get_submodule(name)
            if submodule.training:
                self._statistics[name] = {n: v.clone() for n, v in _buffers(submodule)}
                submodule.training = False

    def keep(self, model: nn.Module) -> None:
        """Freeze again what a call of model.train() has set free, and undo what moved by it."""
        for name, values in self._statistics.items():
            submodule = model.get_submodule(name)
            if submodule.training:
                submodule.training = False
                with torch.no_grad():
                    for buffer_name, buffer in _buffers(submodule):
                        buffer.copy_(values[buffer_name])

    def thaw(self, model: nn.Module) -> None:
        """Put back what `freeze` changed; what is no longer there is passed over."""
        named, submodules = dict(model.named_parameters()), dict(model.named_modules())
        for name in self._parameters:
            if name in named:
                named[name].requires_grad_(True)
        for name in self._statistics:
            if name in submodules and model.training:
                submodules[name].training = True
        self._parameters, self._statistics = [], {}


@contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Put all buffers back on the way out, also those that were replaced."""
    saved = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in saved:
                buffer.copy_(value)
                module._buffers[name] = buffer


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name in _STATISTICS:
        if isinstance(buffer := getattr(module, name, None), Tensor):
            yield name, buffer
