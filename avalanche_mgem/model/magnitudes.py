"""How loud each output unit of a gated layer is, and other scores to compare that with.

For MIGU (arXiv 2406.17245, eq. 3) the sums of |y| are recorded while the model runs forward. Which
rows they keep is said by `avalanche_mgem.restriction.rows`, and `avalanche_mgem.model.holding`
holds the others still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from avalanche_mgem.arguments import one_of
from avalanche_mgem.model.distributed import add_up, n_processes, share_first
from avalanche_mgem.model.hooks import no_hook
from avalanche_mgem.model.padding import TokenMask
from avalanche_mgem.model.products import ProductWatch
from avalanche_mgem.model.sources import Call, Product
from avalanche_mgem.model.units import GatedLayer
from avalanche_mgem.restriction.rows import (
    NORMALIZE,
    UNSEEN,
    Normalize,
    token_magnitudes,
)

# What the model goes on with instead of a layer's output; None: with the output.
Replace = Callable[[GatedLayer, Call], Tensor | None]


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

    _scores: dict[str, Tensor] | None = None  # of the sums, once they were asked for

    def __init__(self, normalize: Normalize = "none") -> None:
        one_of("normalize", normalize, NORMALIZE)
        self.normalize = normalize
        self._hooks: list[RemovableHandle] = []
        self._guard: list[RemovableHandle] = []
        self._watches: list[ProductWatch] = []
        self.reset()

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_hooks": [], "_guard": [], "_watches": []}

    def open(
        self,
        layers: Iterable[GatedLayer],
        *,
        token_mask: TokenMask = None,
        guard: nn.Module | None = None,
        on_error: Callable[[], object] | None = None,
        replace: Replace | None = None,
    ) -> MagnitudeRecorder:
        """Open a window on these layers; one that is still open is closed first.

        Args:
            layers: whose outputs are recorded.
            token_mask: which tokens count, [N, L], such as an attention mask, or a function that
                says it for a layer's name; None: all. Outputs that do not begin with these
                dimensions, pooled ones or images, count all of theirs.
            on_error: called when a forward pass of `guard` fails.
            guard: the model, when `close` is called at an event that an error in its forward pass
                would skip: then the error closes the window.
            replace: called with each layer and its call after its sum was taken; what it returns,
                if not None, the model goes on with instead of the layer's output.
        """
        self.close()
        watched: dict[nn.Module, list[GatedLayer]] = {}
        for layer in layers:
            if isinstance(layer.source, Product):
                watched.setdefault(layer.module, []).append(layer)
                continue
            hook = _Hook(self, layer, _mask_of(token_mask, layer), replace)
            self._hooks.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        for module, own in watched.items():
            watch = ProductWatch(own, _mask_of(token_mask, own[0]), self)
            self._hooks += watch.hooks(module)
            self._watches.append(watch)
        if guard is not None:
            close = _CloseOnError(self, on_error)
            self._guard.append(guard.register_forward_hook(close, always_call=True))
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
        while self._watches:
            self._watches.pop().abandon()

    def __enter__(self) -> MagnitudeRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self) -> None:
        """Forget the sums."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int | Tensor] = {}
        self._scores = None

    def add(self, name: str, total: Tensor, count: int | Tensor) -> None:
        """Add a sum of magnitudes, float32 [n], over so many tokens to those of a layer.

        Of blocks, float32 [*blocks, n] and the tokens of each along the first of their dimensions.

        A layer that has grown since, or is on another device, begins anew.
        """
        self._scores = None
        old = self.sums.get(name)
        if old is not None and old.shape == total.shape and old.device == total.device:
            total, count = old + total, self.counts[name] + count
        self.sums[name], self.counts[name] = total, count

    def scores(self) -> dict[str, Tensor]:
        """Return the mean magnitude of each unit, float32 [n], of the layers that were called.

        Where no token counted, it is zero. Blocks have theirs over their own tokens, [*blocks, n],
        and experts that had none are `UNSEEN`. Of this process alone.
        """
        if self._scores is None:
            counts = self.counts
            self._scores = {n: _mean_over(total, counts[n]) for n, total in self.sums.items()}
        return self._scores

    def scores_of_all(self, layers: Iterable[GatedLayer]) -> dict[str, Tensor]:
        """Return the same over the outputs in all processes; of all of them.

        Sums and numbers of tokens are added up before one is divided by the other, so that each
        token counts the same, in whatever process. A layer has a score where one has called it.

        Args:
            layers: that the window was open on, in one order in all processes.
        """
        if n_processes() == 1:
            return self.scores()
        layers = list(layers)
        parts = [self._sums_counts_and_calls(layer) for layer in layers]
        together = torch.cat([part.to(parts[0].device) for part in parts])
        add_up(together)
        scores = {}
        own = torch.split(together, [len(part) for part in parts])
        for layer, part in zip(layers, own, strict=True):
            if part[-1] > 0:
                n = layer.n_rows
                total, count = part[:n].view(layer.shape), part[n:-1]
                score = _mean_over(total, count if layer.blocks else count[0])
                scores[layer.name] = score.float().to(layer.rows[0].parameter.device)
        return scores

    def _sums_counts_and_calls(self, layer: GatedLayer) -> Tensor:
        """A layer's sums, its numbers of tokens and whether it was called, float64 [n + 1 + 1].

        With blocks, there is a number of tokens for each along the first of their dimensions.
        """
        device, n = layer.rows[0].parameter.device, layer.n_rows
        counts = layer.blocks[0] if layer.blocks else 1
        values = torch.zeros(n + counts + 1, dtype=torch.float64, device=device)
        if layer.name in self.sums:
            values[:n] = self.sums[layer.name].flatten()
            values[n:-1] = self.counts[layer.name]
            values[-1] = 1.0
        return values


def _mask_of(token_mask: TokenMask, layer: GatedLayer) -> Tensor | None:
    return token_mask(layer.name) if callable(token_mask) else token_mask


def _mean_over(total: Tensor, count: int | Tensor) -> Tensor:
    """The mean of sums, [n] over one number of tokens, or [*blocks, n] over those of each block."""
    if not isinstance(count, Tensor):
        return total / max(count, 1)
    if total.ndim == 1:
        return total / count.clamp(min=1)
    count = count.view(-1, *[1] * (total.ndim - 1))
    return (total / count.clamp(min=1)).masked_fill(count == 0, UNSEEN)


@dataclass
class _Hook:
    """Records one layer; a copy of it, as in a copy of the model, does nothing."""

    recorder: MagnitudeRecorder
    layer: GatedLayer
    token_mask: Tensor | None
    replace: Replace | None = None

    def __call__(
        self,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        output: object,
    ) -> Tensor | None:
        layer = self.layer
        assert not isinstance(layer.source, Product)
        call = Call(module, arguments, keywords, output)
        outputs = layer.source.read(call, layer.rows[0].width, layer.channel_dim)
        sums = [self._sum(own) for own in outputs]
        if not layer.blocks:
            self.recorder.add(layer.name, *sums[0])
            return None if self.replace is None else self.replace(layer, call)
        counts = [torch.as_tensor(count, device=total.device) for total, count in sums]
        self.recorder.add(layer.name, torch.stack([s for s, _ in sums]), torch.stack(counts))
        return None

    def _sum(self, output: Tensor) -> tuple[Tensor, int | Tensor]:
        """The sum of an output's magnitudes, and the number of its tokens."""
        layer = self.layer
        mask = self.token_mask if layer.channel_dim == -1 else None
        if mask is not None and output.ndim == 2 and len(output) == mask.numel():
            mask = mask.reshape(-1)  # some models hand their layers all tokens in a row
        elif mask is not None and output.shape[:-1][: mask.ndim] != mask.shape:
            mask = None
        return token_magnitudes(
            output,
            normalize=self.recorder.normalize,
            weights=mask,
            channel_dim=layer.channel_dim,
        )

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()


@dataclass
class _CloseOnError:
    recorder: MagnitudeRecorder
    on_error: Callable[[], object] | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        # torch calls such a hook with None when the forward pass has raised.
        if output is None:
            # It goes over the hooks at this moment, which cannot lose one before the last.
            is_last = next(reversed(module._forward_hooks.values())) is self
            (self.recorder.close if is_last else self.recorder.close_layers)()
            if self.on_error is not None:
                self.on_error()

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()


def share_scores(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the first process's scores, for those that all have alike or draw; of all."""
    for score in scores.values():
        share_first(score)
    return scores


def weight_scores(layers: Iterable[GatedLayer]) -> dict[str, Tensor]:
    """Return the mean of |W| over each row, float32 [n] (the paper's table 11, for comparison)."""
    return {
        layer.name: _mean([rows.magnitudes(rows.parameter) for rows in layer.rows], layer)
        for layer in layers
    }


def gradient_scores(layers: Iterable[GatedLayer]) -> dict[str, Tensor]:
    """Return the mean of |dL/dW| over each row, float32 [n]; layers without a gradient have none.

    The paper's table 11, for comparison.
    """
    scores = {}
    for layer in layers:
        slopes = [(rows, rows.parameter.grad) for rows in layer.rows]
        own = [rows.magnitudes(slope) for rows, slope in slopes if slope is not None]
        if own:
            scores[layer.name] = _mean(own, layer)
    return scores


def _mean(scores: Sequence[Tensor], layer: GatedLayer) -> Tensor:
    """Return the mean over a layer's parameters, such as the B of several adapters."""
    return torch.stack(list(scores)).mean(0).view(layer.shape)


def without_unseen(scores: dict[str, Tensor], layers: Iterable[GatedLayer]) -> dict[str, Tensor]:
    """Return scores with `UNSEEN` for experts that had no token: those whose gradient is zero.

    Scores of outputs have it already; of other scores nothing tells but the gradient.
    """
    for layer in layers:
        if layer.kind != "experts" or layer.name not in scores:
            continue
        slopes = [(rows, rows.parameter.grad) for rows in layer.rows]
        moved = [r.magnitudes(g).view(layer.shape) for r, g in slopes if g is not None]
        if moved:
            unseen = ~torch.stack(moved).any(0).flatten(1).any(1)
            fitting = unseen.view(-1, *[1] * (len(layer.shape) - 1))
            scores[layer.name] = scores[layer.name].masked_fill(fitting, UNSEEN)
    return scores


def random_scores(layers: Iterable[GatedLayer], generator: torch.Generator) -> dict[str, Tensor]:
    """Return scores that say nothing, uniform in [0, 1), float32 [n] (a control, ours).

    The generator is on the CPU, so that all devices and all ranks with one seed agree.
    """
    return {
        layer.name: torch.rand(layer.shape, generator=generator).to(layer.rows[0].parameter.device)
        for layer in layers
    }
