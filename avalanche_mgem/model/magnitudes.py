"""How loud each output unit of a gated layer is, and other scores to compare that with.

For MIGU (arXiv 2406.17245, eq. 3) the sums of |y| are recorded while the model runs forward. Which
rows they keep is said by `avalanche_mgem.restriction.rows`, and `avalanche_mgem.model.holding`
holds the others still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from avalanche_mgem.arguments import one_of
from avalanche_mgem.model.layers import GatedLayer
from avalanche_mgem.model.padding import TokenMask
from avalanche_mgem.restriction.rows import (
    NORMALIZE,
    Normalize,
    row_magnitudes,
    token_magnitudes,
)


class MagnitudeRecorder:
    """Adds up the magnitudes of gated layers' outputs while a window is open.

        with recorder.open(layers):
            output = model(x)

    The window is a set of forward hooks, which are gone when it is closed, by an error too. Sums
    go on over further windows, as over the passes of an accumulated gradient, until `reset`. A copy
    or a pickle of the recorder has its sums and no window; one of the model has hooks that do
    nothing. A layer called twice in a window, as in a recurrent network, counts twice.

    Args:
        normalize: "none" or "token", see `token_magnitudes`.

    Raises:
        ValueError: an unknown `normalize`.
    """

    def __init__(self, normalize: Normalize = "none") -> None:
        one_of("normalize", normalize, NORMALIZE)
        self.normalize = normalize
        self._hooks: list[RemovableHandle] = []
        self._guard: list[RemovableHandle] = []
        self.reset()

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_hooks": [], "_guard": []}

    def open(
        self,
        layers: Iterable[GatedLayer],
        *,
        token_mask: TokenMask = None,
        guard: nn.Module | None = None,
    ) -> MagnitudeRecorder:
        """Open a window on these layers; one that is still open is closed first.

        Args:
            layers: whose outputs are recorded.
            token_mask: which tokens count, [N, L], such as an attention mask, or a function that
                says it for a layer's name; None: all. Outputs that do not begin with these
                dimensions, pooled ones or images, count all of theirs.
            guard: the model, when `close` is called at an event that an error in its forward pass
                would skip: then the error closes the window.
        """
        self.close()
        for layer in layers:
            mask = token_mask(layer.name) if callable(token_mask) else token_mask
            hook = _Hook(self, layer.name, layer.channel_dim, mask)
            self._hooks.append(layer.module.register_forward_hook(hook))
        if guard is not None:
            on_error = _CloseOnError(self)
            self._guard.append(guard.register_forward_hook(on_error, always_call=True))
        return self

    def close(self) -> None:
        """Take the hooks off, our own only; the sums stay."""
        self.close_layers()
        while self._guard:
            self._guard.pop().remove()

    def close_layers(self) -> None:
        """Take the hooks of layers off, and leave the guard's."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> MagnitudeRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self) -> None:
        """Forget the sums."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int | Tensor] = {}

    def add(self, name: str, total: Tensor, count: int | Tensor) -> None:
        """Add a sum of magnitudes, float32 [n], over so many tokens to those of a layer.

        A layer that has grown since, or is on another device, begins anew.
        """
        old = self.sums.get(name)
        if old is not None and old.shape == total.shape and old.device == total.device:
            total, count = old + total, self.counts[name] + count
        self.sums[name], self.counts[name] = total, count

    def scores(self) -> dict[str, Tensor]:
        """Return the mean magnitude of each unit, float32 [n], of the layers that were called.

        Where no token counted, it is zero.
        """
        return {name: total / _at_least_one(self.counts[name]) for name, total in self.sums.items()}


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@dataclass
class _Hook:
    """Records one layer; a copy of it, as in a copy of the model, does nothing."""

    recorder: MagnitudeRecorder
    name: str
    channel_dim: int
    token_mask: Tensor | None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        mask = self.token_mask if self.channel_dim == -1 else None
        if mask is not None and output.ndim == 2 and len(output) == mask.numel():
            mask = mask.reshape(-1)  # some models hand their layers all tokens in a row
        elif mask is not None and output.shape[:-1][: mask.ndim] != mask.shape:
            mask = None
        total, count = token_magnitudes(
            output,
            normalize=self.recorder.normalize,
            weights=mask,
            channel_dim=self.channel_dim,
        )
        self.recorder.add(self.name, total, count)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return _no_hook, ()


@dataclass
class _CloseOnError:
    recorder: MagnitudeRecorder

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        # torch calls such a hook with None when the forward pass has raised.
        if output is None:
            # It goes over the hooks at this moment, which cannot lose one before the last.
            is_last = next(reversed(module._forward_hooks.values())) is self
            (self.recorder.close if is_last else self.recorder.close_layers)()

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*arguments: object) -> None:
    """Stand for a hook in a copy."""


def weight_scores(layers: Iterable[GatedLayer]) -> dict[str, Tensor]:
    """Return the mean of |W| over each row, float32 [n] (the paper's table 11, for comparison)."""
    return {
        layer.name: _mean([row_magnitudes(rows.parameter, rows.dim) for rows in layer.rows])
        for layer in layers
    }


def gradient_scores(layers: Iterable[GatedLayer]) -> dict[str, Tensor]:
    """Return the mean of |dL/dW| over each row, float32 [n]; layers without a gradient have none.

    The paper's table 11, for comparison.
    """
    scores = {}
    for layer in layers:
        slopes = [(rows.parameter.grad, rows.dim) for rows in layer.rows]
        own = [row_magnitudes(slope, dim) for slope, dim in slopes if slope is not None]
        if own:
            scores[layer.name] = _mean(own)
    return scores


def _mean(scores: Sequence[Tensor]) -> Tensor:
    """Return the mean over a layer's parameters, such as the B of several adapters."""
    return torch.stack(list(scores)).mean(0)


def random_scores(layers: Iterable[GatedLayer], generator: torch.Generator) -> dict[str, Tensor]:
    """Return scores that say nothing, uniform in [0, 1), float32 [n] (a control, ours).

    The generator is on the CPU, so that all devices and all ranks with one seed agree.
    """
    return {
        layer.name: torch.rand(layer.n_rows, generator=generator).to(layer.rows[0].parameter.device)
        for layer in layers
    }
