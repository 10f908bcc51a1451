"""How far training moved the weights, as metrics for Avalanche's EvaluationPlugin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor, nn

from avalanche_mgem.arguments import flag
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.lazy import is_lazy

# ||a - b||^2 and ||b||^2 of each parameter, by its name.
Squares = dict[str, tuple[float, float]]

_ROOT = "model"  # what parameters of no submodule are listed under


class DistanceMetric(PluginMetric):
    """How far each experience moved the model, in the 2-norm of all its parameters (ours).

    Emitted after each experience: `Distance_Absolute`, ||theta_after - theta_before||;
    `Distance_Relative`, that over ||theta_before||; and `Distance_FromStart`,
    ||theta_after - theta_0||, where theta_0 is the model before its first experience. Each is over
    the parameters that both moments have under one name and in one shape: a head that grew in
    between and an adapter that came are left out. Frozen parameters are part of it, with distance
    zero; buffers are none. A relative distance from zero, as of a LoRA's B, is left out.

    Differences are taken in float32 at least and their squares summed in float64.

    The memory it takes is a copy of the model during each experience, on the model's device, and
    one more for the whole run with `from_start`, which is part of a checkpoint too.

    Args:
        modules: emit each for every module that owns parameters too, as
            `Distance_Absolute/.../MODULE`; what the model itself owns is `model`.
        from_start: emit `Distance_FromStart`.

    Attributes:
        history: what was emitted after each experience, by name, such as `Distance_Absolute` or
            `Distance_Absolute/MODULE`.
    """

    history: list[dict[str, float]]

    def __init__(self, *, modules: bool = False, from_start: bool = True) -> None:
        super().__init__()
        self._modules = flag("modules", modules)
        self._from_start = flag("from_start", from_start)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.history = []
        self._before: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def result(self) -> dict[str, float]:
        """Return the means over the experiences so far, by name; empty before the first.

        `Distance_FromStart` is the last one, not a mean. Modules are not part of it: see
        `history`.
        """
        result = {}
        for name in ("Distance_Absolute", "Distance_Relative"):
            values = [entry[name] for entry in self.history if name in entry]
            if values:
                result[name] = sum(values) / len(values)
        if self.history and "Distance_FromStart" in self.history[-1]:
            result["Distance_FromStart"] = self.history[-1]["Distance_FromStart"]
        return result

    def before_training_exp(self, strategy: Strategy) -> None:
        """Remember where the model is."""
        self._before = _copies(strategy.model)
        if self._from_start and not self._start:
            self._start = self._before

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Emit how far it is from there now."""
        moved = _squares(strategy.model, self._before)
        self._before = {}
        values = self._named(moved, ("Absolute", "Relative"))
        if self._from_start:
            values |= self._named(_squares(strategy.model, self._start), ("FromStart",))
        self.history.append(values)
        stream, step = strategy.experience.origin_stream.name, strategy.clock.train_iterations
        return [
            MetricValue(self, _full_name(name, stream), value, step)
            for name, value in values.items()
        ]

    def __str__(self) -> str:
        return "Distance"

    def _named(self, squares: Squares, kinds: Iterable[str]) -> dict[str, float]:
        groups: dict[str, list[tuple[float, float]]] = {"": list(squares.values())}
        if self._modules:
            for name, square in squares.items():
                groups.setdefault("/" + (name.rpartition(".")[0] or _ROOT), []).append(square)
        values = {}
        for suffix, pairs in groups.items():
            norm = math.sqrt(math.fsum(size for _, size in pairs))
            distance = math.sqrt(math.fsum(change for change, _ in pairs))
            for kind in kinds:
                if kind != "Relative":
                    values[f"Distance_{kind}{suffix}"] = distance
                elif norm > 0:
                    values[f"Distance_{kind}{suffix}"] = distance / norm
        return values


def distance_metrics(*, modules: bool = False, from_start: bool = True) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one DistanceMetric."""
    return [DistanceMetric(modules=modules, from_start=from_start)]


def _floating(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    # Quantised weights are no floating numbers; they cannot be trained either. What a lazy module
    # has before its first forward pass is no weight yet.
    named = model.named_parameters()
    return ((n, p.detach()) for n, p in named if p.is_floating_point() and not is_lazy(p))


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in _floating(model)}


def _squares(model: nn.Module, before: Mapping[str, Tensor]) -> Squares:
    return {
        name: (_square(_wide(now) - _wide(before[name].to(now.device))), _square(before[name]))
        for name, now in _floating(model)
        if name in before and before[name].shape == now.shape
    }


def _wide(value: Tensor) -> Tensor:
    """At least float32: a difference of two half-precision numbers is mostly rounding."""
    return value if value.dtype == torch.float64 else value.float()


def _square(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2


def _full_name(name: str, stream: str) -> str:
    name, _, module = name.partition("/")
    return f"{name}/train_phase/{stream}_stream" + (f"/{module}" * bool(module))
