"""How far from orthogonal the adapters of different tasks are: O-LoRA's penalty, and its metric."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor, nn

from avalanche_mgem.arguments import flag, instance, one_of
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.huggingface.adapters import adapter_names, lora_layers

Penalty = Literal["absolute", "squared"]


def orthogonality_penalty(model: nn.Module, penalty: Penalty = "absolute") -> Tensor | None:
    """Return the sum over layers and earlier adapters i of the entries of |A_t A_i'|; 0-dim.

    A_t [r, in] is the A of the newest adapter, the only one through which gradients flow; the rows
    of a convolution's A are its flattened filters. None where there are not two adapters yet.

    Args:
        model: with adapters.
        penalty: "absolute", the sum of the entries' absolute values (as O-LoRA's code), or
            "squared", that of their squares (as in its paper, arXiv 2310.14152).

    Raises:
        ValueError: model is none, or another penalty.
    """
    instance("model", model, nn.Module, what="a torch module")
    one_of("penalty", penalty, ("absolute", "squared"))
    names = adapter_names(model)
    earlier, newest = names[:-1], "".join(names[-1:])
    sums = []
    for layer in lora_layers(model).values():
        before = [layer.lora_A[name].weight for name in earlier if name in layer.lora_A]
        if before and newest in layer.lora_A:
            past = torch.cat([weight.detach().flatten(1) for weight in before])
            products = layer.lora_A[newest].weight.flatten(1) @ past.T
            sums.append((products.abs() if penalty == "absolute" else products.square()).sum())
    # Layers of a large model may be on several devices.
    return torch.stack([each.to(sums[0].device) for each in sums]).sum() if sums else None


def adapter_norms(model: nn.Module) -> Tensor | None:
    """Return the sum over layers of ||A|| + ||B||, A and B those of the newest adapter; 0-dim.

    The norms are Frobenius norms, not squared. None where there is no adapter. Source: the code of
    O-LoRA (arXiv 2310.14152), whose paper has no such term.
    """
    newest = "".join(adapter_names(model)[-1:])
    weights = [
        adapters[newest].weight
        for layer in lora_layers(model).values()
        for adapters in (layer.lora_A, layer.lora_B)
        if newest in adapters
    ]
    norms = [torch.linalg.vector_norm(weight) for weight in weights]
    # Layers of a large model may be on several devices.
    return torch.stack([norm.to(norms[0].device) for norm in norms]).sum() if norms else None


@runtime_checkable
class ShowsPenalty(Protocol):
    """A plugin that shows the penalty of its last iteration, 0-dim; None where there was none."""

    last_penalty: Tensor | None


class OrthogonalityMetric(PluginMetric):
    """O-LoRA's penalty, without its weight: the mean over the iterations that had one.

    Emitted after each experience that had earlier adapters, as `Orthogonality_Penalty`. The
    iterations wait for no accelerator, unless `minibatch` is set.

    Args:
        minibatch: emit the penalty of every iteration too, as `Orthogonality_Penalty_MB`.
    """

    def __init__(self, *, minibatch: bool = False) -> None:
        super().__init__()
        self._minibatch = flag("minibatch", minibatch)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sum: Tensor | None = None
        self._count = 0

    def result(self) -> float | None:
        """Return the mean over the experience so far; None where there was no penalty."""
        return None if self._sum is None else float(self._sum) / self._count

    def before_training_exp(self, strategy: Strategy) -> None:
        """Start the mean of an experience."""
        self.reset()

    def after_training_iteration(self, strategy: Strategy) -> list[MetricValue]:
        """Add the iteration's penalty."""
        plugin = next((p for p in strategy.plugins if isinstance(p, ShowsPenalty)), None)
        penalty = None if plugin is None else plugin.last_penalty
        if penalty is None:
            return []
        total = penalty.double()
        self._sum = total if self._sum is None else self._sum + total
        self._count += 1
        return self._emit(strategy, float(penalty), "_MB") if self._minibatch else []

    def after_training_exp(self, strategy: Strategy) -> list[MetricValue]:
        """Emit the mean over the experience."""
        mean = self.result()
        return [] if mean is None else self._emit(strategy, mean)

    def __str__(self) -> str:
        return "Orthogonality"

    def _emit(self, strategy: Strategy, value: float, suffix: str = "") -> list[MetricValue]:
        stream = strategy.experience.origin_stream.name
        name = f"Orthogonality_Penalty{suffix}/train_phase/{stream}_stream"
        return [MetricValue(self, name, value, strategy.clock.train_iterations)]


def orthogonality_metrics(*, minibatch: bool = False) -> list[PluginMetric]:
    """Return the metrics to hand to Avalanche's EvaluationPlugin: one OrthogonalityMetric."""
    return [OrthogonalityMetric(minibatch=minibatch)]
