"""Parts of a model held still while it trains: parameters, and what moves without a gradient."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.spectral_norm import SpectralNorm

from avalanche_mgem.model.lazy import is_lazy

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SINGULAR_VECTORS = ("_u", "_v")  # of torch.nn.utils.parametrizations.spectral_norm


class ModelReference:
    """A model that is known while it lives; copies of the reference know none."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._weak = None if model is None else weakref.ref(model)

    def __getstate__(self) -> dict[str, None]:
        return {"_weak": None}

    def is_other_than(self, model: nn.Module) -> bool:
        """Whether a model is known, and it is not this one."""
        return self._weak is not None and self._weak() is not model

    def model_or(self, other: nn.Module) -> nn.Module | None:
        """Return the model; None where it lives no more, and `other` where none is known."""
        return other if self._weak is None else self._weak()


class Freezer:
    """Freezes parameters and running statistics by their names, and puts all back.

    A frozen parameter needs no gradient and has none, so that no optimiser touches it or its state,
    weight decay included. What keeps running statistics is in evaluation mode, so that they stand;
    dropout goes on.
    """

    def __init__(self) -> None:
        self._model = ModelReference()  # that was frozen
        self._parameters: list[str] = []  # which required a gradient before
        self._statistics: dict[str, dict[str, Tensor]] = {}  # by submodule
        self._paused: dict[str, dict[str, Tensor]] = {}  # the same, while nothing is frozen

    def freeze(
        self, model: nn.Module, parameters: Iterable[str], statistics: Iterable[str]
    ) -> None:
        """Freeze these parameters, and the running statistics of these submodules.

        What is frozen already stays somebody else's. Statistics that have moved since a `pause` are
        put back.
        """
        self._model = ModelReference(model)
        named = dict(model.named_parameters())
        for name in parameters:
            if named[name].requires_grad:
                named[name].requires_grad = False  # a lazy module's has no requires_grad_()
                named[name].grad = None
                self._parameters.append(name)
        for name in statistics:
            submodule = model.get_submodule(name)
            if submodule.training:
                if name in self._paused:
                    _put_back(submodule, self._paused[name])
                self._statistics[name] = {n: v.clone() for n, v in moving_buffers(submodule)}
                submodule.training = False

    def frozen(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of the model that are frozen."""
        named = dict(model.named_parameters()) if self._parameters else {}
        return [named[name] for name in self._parameters if name in named]

    @property
    def has_statistics(self) -> bool:
        """Whether running statistics are frozen."""
        return bool(self._statistics)

    def keep(self, model: nn.Module) -> None:
        """Freeze again what a call of model.train() has set free, and undo what moved by it."""
        for name, values in self._statistics.items():
            submodule = model.get_submodule(name)
            if submodule.training:
                submodule.training = False
                _put_back(submodule, values)

    def pause(self, model: nn.Module) -> None:
        """Put back what `freeze` changed, until the same is frozen again."""
        paused = self._statistics
        self.thaw(model)
        self._paused = paused

    def thaw(self, model: nn.Module) -> None:
        """Put back what `freeze` changed; what is no longer there is passed over."""
        named, submodules = dict(model.named_parameters()), dict(model.named_modules())
        for name in self._parameters:
            if name in named:
                named[name].requires_grad = True
        for name in self._statistics:
            if name in submodules and model.training:
                submodules[name].training = True
        self._parameters, self._statistics, self._paused = [], {}, {}

    def release(self, model: nn.Module) -> None:
        """Thaw the model that was frozen, if it still lives; a copy of this thaws `model`."""
        frozen = self._model.model_or(model)
        self.thaw(nn.Module() if frozen is None else frozen)


class SavedBuffers:
    """Copies of all buffers of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._saved = [
            (module, name, buffer, None if is_lazy(buffer) else buffer.clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put all buffers back, also those that were replaced.

        Running statistics that a lazy module has made since are those that it begins with.
        """
        for module, name, buffer, value in self._saved:
            if value is not None:
                buffer.copy_(value)
                module._buffers[name] = buffer
            elif not is_lazy(buffer) and isinstance(module, _NormBase):
                module.reset_running_stats()


@contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Put all buffers back on the way out, also those that were replaced."""
    saved = SavedBuffers(model)
    try:
        yield
    finally:
        saved.restore()


def moving_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the module's own buffers that move in training without a gradient, by name.

    They are running statistics and the singular vectors of spectral normalisation.
    """
    hooks = module._forward_pre_hooks.values()
    old_style = [hook.name for hook in hooks if isinstance(hook, SpectralNorm)]
    vectors = [name + end for name in old_style for end in _SINGULAR_VECTORS]
    for name in (*_STATISTICS, *_SINGULAR_VECTORS, *vectors):
        buffer = getattr(module, name, None)
        if isinstance(buffer, Tensor) and not is_lazy(buffer):
            yield name, buffer


@torch.no_grad()
def _put_back(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, buffer in moving_buffers(module):
        if name in values:
            buffer.copy_(values[name])
