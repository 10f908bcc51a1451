"""Avalanche's strategies, put right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.training import plugins, supervised


class SynapticIntelligencePlugin(plugins.SynapticIntelligencePlugin):  # type: ignore[misc]
    """Synaptic intelligence (arXiv 1703.04200) as Avalanche has it, working on the CPU too.

    Avalanche's plugin keeps the weights of before a step, and those of before an experience, to
    compare with those of after. On the CPU what it keeps shares memory with the weights, so that
    every difference, and with them the penalty, is zero: it trains as naive does. Here they are
    copies.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the weights of before the experience."""
        super().before_training_exp(strategy, **kwargs)
        _copy_data(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the weights of before the step."""
        super().before_training_iteration(strategy, **kwargs)
        _copy_data(self.syn_data["old_theta"])


class SynapticIntelligence(supervised.SynapticIntelligence):  # type: ignore[misc]  # no types
    """Avalanche's strategy with the plugin above in place of Avalanche's."""

    def __init__(
        self, *, si_lambda: float | Sequence[float], eps: float = 1e-7, **arguments: Any
    ) -> None:
        super().__init__(si_lambda=si_lambda, eps=eps, **arguments)
        for index, plugin in enumerate(self.plugins):
            if isinstance(plugin, plugins.SynapticIntelligencePlugin):
                self.plugins[index] = SynapticIntelligencePlugin(si_lambda, eps)


def _copy_data(kept: Mapping[str, Any]) -> None:
    for weights in kept.values():
        weights.data = weights.data.clone()
