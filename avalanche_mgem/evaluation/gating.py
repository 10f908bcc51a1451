"""What a gate of rows did, as metrics for Avalanche's EvaluationPlugin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from matplotlib.figure import Figure
from torch import Tensor

from avalanche_mgem.arguments import flag
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.evaluation.heat_map import heat_map
from avalanche_mgem.evaluation.matrix import Matrix
from avalanche_mgem.restriction.rows import kept_rows_of_layers

Rows = Mapping[str, Tensor]  # [n] for each layer, or [*blocks, n], by its name


@runtime_checkable
class ShowsMask(Protocol):
    """A plugin that shows which rows of which layers its last iteration let move.

    Attributes:
        mask_fraction: the fraction of each layer's rows that is masked, in [0, 1).
        last_mask: bool [n] by layer, True where a row may move; None where nothing was masked.
        last_scores: the scores by which rows are chosen, [n] by layer, also while nothing is
            masked; None where there are none.
    """

    mask_fraction: float
    last_mask: dict[str, Tensor] | None
    last_scores: dict[str, Tensor] | None


class GatingMetric(PluginMetric):
    """How many rows were masked, and whether other tasks move other rows.

    Emitted after each experience that had a plugin which shows a mask:
    `Gating_MaskedShare`, the share of the rows of all gated layers that was masked, the mean over
    the iterations, with zero for those that masked nothing; `Gating_GatedShare`, the share of the
    model's trainable parameters that lies in gated layers at all, where the plugin has a
    `last_account`; and from the second experience on
    `Gating_Overlap`, how many of its rows are those of the experience before, the mean over the
    layers (MIGU, arXiv 2406.17245, figure 5). The rows of an experience are those that the means
    of its iterations' scores keep, S_t, and a layer's overlap is |S_t and S_{t-1}| / |S_t|, in
    [0, 1]. Rows chosen by chance overlap in 1 - mask_fraction of them. An experience that masks
    nothing, as the first, has such rows too.

    Layers are compared under one name and only where they have the same number of rows; experience
    means what Avalanche trains as one, in an online stream the sub-experience. The iterations wait
    for no accelerator, unless `minibatch` is set.

    Args:
        minibatch: emit the share of every iteration too, as `Gating_MaskedShare_MB`.
        layers: emit the overlap of each layer too, as `Gating_Overlap/.../LAYER`.
        histograms: emit each layer's mean scores too, as the histogram
            `Gating_Magnitudes/.../LAYER`.
        heat_map: emit the overlaps of all pairs of experiences as a picture too, as
            `Gating_OverlapMatrix`; for this the rows of all experiences are remembered, a byte a
            row on the CPU.
    """

    def __init__(
        self,
        *,
        minibatch: bool = False,
        layers: bool = True,
        histograms: bool = True,
        heat_map: bool = False,
    ) -> None:
        super().__init__()
        self._minibatch = flag("minibatch", minibatch)
        self._layers = flag("layers", layers)
        self._histograms = flag("histograms", histograms)
        self._heat_map = flag("heat_map", heat_map)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._earlier, self._share, self._means = _Share(), _Share(), _RowMeans()
        self._rows: list[dict[str, Tensor]] = []  # of the experiences, the last one last
        self._overlaps: list[list[float]] = []  # of each experience with those before it

    def result(self) -> dict[str, float]:
        """Return the means over the run so far, by name; empty where no plugin showed a mask.

        `Gating_MaskedShare` over the iterations, `Gating_Overlap` over the pairs of successive
        experiences.
        """
        share = _Share()
        share.merge(self._earlier)
        share.merge(self._share)
        successive = [row[-1] for row in self._overlaps if row and not math.isnan(row[-1])]
        overlap = {"Gating_Overlap": sum(successive) / len(successive)} if successive else {}
        return {**share.values(), **overlap}

    def matrix(self) -> Matrix:
        """Return the overlaps of all pairs of experiences, float64 [T, T]; NaN if not comparable.

        Entry [t, s] is |S_t and S_s| / |S_t|, the mean over the layers, and [t, t] is 1; above the
        diagonal it is mirrored, which is the same while the mask fraction stays. Without
        `heat_map` only successive experiences are compared.
        """
        matrix = np.full((len(self._overlaps),) * 2, math.nan)
        np.fill_diagonal(matrix, 1.0)
        for t, row in enumerate(self._overlaps):
            matrix[t, t - len(row) : t] = matrix[t - len(row) : t, t] = row
        return matrix

    def before_training_exp(self, strategy: Strategy) -> None:
        """Start the means of an experience."""
        self._earlier.merge(self._share)
        self._share, self._means = _Share(), _RowMeans()

    def after_training_iteration(self, strategy: Strategy) -> list[MetricValue]:
        """Add what the iteration's mask and scores were."""
        plugin = _source(strategy)
        if plugin is None:
            return []
        self._share.add(plugin.last_mask)
        if plugin.last_scores is not None:
            self._means.add(plugin.last_scores)
        if not self._minibatch:
            return []
        share = _Share()
        share.add(plugin.last_mask)
        return [_value(self, strategy, f"{name}_MB", v) for name, v in share.values().items()]

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Emit what the experience's rows were, and compare them with those before."""
        values: dict[str, Any] = dict(self._share.values())
        means = self._means.values()
        plugin = _source(strategy)
        if plugin is not None and means:
            values |= self._compare(means, plugin.mask_fraction)
        if (found := getattr(plugin, "last_account", None)) is not None:
            values["Gating_GatedShare"] = float(found.share)
        if self._histograms:
            values |= {f"Gating_Magnitudes/{name}": mean for name, mean in means.items()}
        return [_value(self, strategy, name, value) for name, value in values.items()]

    def __str__(self) -> str:
        return "Gating"

    def _compare(self, means: Rows, mask_fraction: float) -> dict[str, Any]:
        # A diverged run has no rows that are larger than others; it must not end here.
        known = {name: mean for name, mean in means.items() if not bool(mean.isnan().any())}
        kept = {n: k.cpu() for n, k in kept_rows_of_layers(known, mask_fraction).items()}
        by_layer = [_overlap(kept, earlier) for earlier in self._rows]
        self._overlaps.append([_mean(overlap) for overlap in by_layer])
        self._rows = [*self._rows, kept] if self._heat_map else [kept]
        values: dict[str, Any] = {}
        if by_layer and by_layer[-1]:
            values["Gating_Overlap"] = self._overlaps[-1][-1]
            if self._layers:
                values |= {f"Gating_Overlap/{n}": share for n, share in by_layer[-1].items()}
        if by_layer and self._heat_map:
            values["Gating_OverlapMatrix"] = _picture(self.matrix())
        return values


def gating_metrics(
    *,
    minibatch: bool = False,
    layers: bool = True,
    histograms: bool = True,
    heat_map: bool = False,
) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one GatingMetric."""
    return [
        GatingMetric(minibatch=minibatch, layers=layers, histograms=histograms, heat_map=heat_map)
    ]


class _Share:
    """The mean over iterations of the share of rows that was masked."""

    def __init__(self) -> None:
        self._iterations = 0
        # Masked rows are counted where the masks are, by the number of rows that there were.
        self._masked: dict[tuple[torch.device, int], Tensor] = {}

    def add(self, mask: Rows | None) -> None:
        self._iterations += 1
        masks = list((mask or {}).values())
        rows = sum(kept.numel() for kept in masks)
        if rows == 0:
            return
        for device in {kept.device for kept in masks}:
            kept = torch.cat([kept.flatten() for kept in masks if kept.device == device])
            self._count((device, rows), kept.logical_not().sum())

    def merge(self, other: _Share) -> None:
        self._iterations += other._iterations
        for key, masked in other._masked.items():
            self._count(key, masked)

    def _count(self, key: tuple[torch.device, int], masked: Tensor) -> None:
        self._masked[key] = self._masked[key] + masked if key in self._masked else masked

    def values(self) -> dict[str, float]:
        if self._iterations == 0:
            return {}
        total = sum(int(masked) / rows for (_, rows), masked in self._masked.items())
        return {"Gating_MaskedShare": float(total) / self._iterations}


class _RowMeans:
    """Running means of the scores of each layer's rows, float32, where the scores are.

    A layer that has grown, or is on another device, begins anew.
    """

    def __init__(self) -> None:
        self._means: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scores: Rows) -> None:
        # Means, not sums: a float32 sum of many equal numbers drifts.
        same_count: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in scores.items():
            mean = self._means.get(name)
            if mean is None or mean.shape != value.shape or mean.device != value.device:
                # A copy in any case: what the plugin shows is the plugin's own.
                self._means[name] = value.detach().to(torch.float32, copy=True)
                self._counts[name] = 1
                continue
            self._counts[name] += 1
            means, values = same_count.setdefault(self._counts[name], ([], []))
            means.append(mean)
            values.append(value.detach().float())
        for count, (means, values) in same_count.items():
            torch._foreach_lerp_(means, values, 1.0 / count)

    def values(self) -> dict[str, Tensor]:
        return self._means


def _overlap(kept: Rows, earlier: Rows) -> dict[str, float]:
    """Return |S_t and S_s| / |S_t| of each layer that both have in one width."""
    return {
        name: int((rows & earlier[name]).sum()) / int(rows.sum())
        for name, rows in kept.items()
        if name in earlier and earlier[name].shape == rows.shape and bool(rows.any())
    }


def _mean(overlap: Mapping[str, float]) -> float:
    return sum(overlap.values()) / len(overlap) if overlap else math.nan


def _picture(matrix: Matrix) -> Figure:
    figure = heat_map(matrix)
    panel, bar = figure.axes
    panel.set(xlabel="Experience", ylabel="Experience", title="Rows kept by both")
    bar.set_ylabel("Overlap")
    return figure


def _value(metric: GatingMetric, strategy: Strategy, name: str, value: Any) -> MetricValue:
    stream = strategy.experience.origin_stream.name
    name, _, layer = name.partition("/")
    full = f"{name}/train_phase/{stream}_stream" + (f"/{layer}" * bool(layer))
    return MetricValue(metric, full, value, strategy.clock.train_iterations)


def _source(strategy: Strategy) -> ShowsMask | None:
    return next((p for p in strategy.plugins if isinstance(p, ShowsMask)), None)
