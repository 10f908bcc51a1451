"""Avalanche's strategies, put right: a cure for one, and checks of the settings of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche.training import plugins, supervised

from avalanche_mgem.arguments import finite, one_of, positive_int

_WHOLE = ("mem_size", "patterns_per_exp", "sample_size")
_NOT_NEGATIVE = ("ewc_lambda", "decay_factor", "memory_strength")
_POSITIVE = ("temperature", "eps")


class SynapticIntelligencePlugin(plugins.SynapticIntelligencePlugin):
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


class SynapticIntelligence(supervised.SynapticIntelligence):
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


def check_baseline(settings: Mapping[str, Any], n_experiences: int) -> None:
    """Check what Avalanche's strategies find out in the middle of the training, or never.

    Args:
        settings: of a strategy, memories as numbers.
        n_experiences: length of the stream.

    Raises:
        ValueError: a setting out of range or of a wrong type; the message begins with its name.
    """
    for name, value in settings.items():
        if name in _WHOLE:
            positive_int(name, value)
        elif name in _NOT_NEGATIVE:
            finite(name, value, minimum=0.0)
        elif name in _POSITIVE:
            finite(name, value, minimum=0.0, above=True)
    if "mode" in settings:
        one_of("mode", settings["mode"], ("separate", "online"))
    # si repeats the last value of a list that is too short; lwf fails in the middle of the stream.
    _check_weights("si_lambda", settings, at_least=1)
    _check_weights("alpha", settings, at_least=n_experiences)
    _check_sample_size(settings, n_experiences)


def _check_weights(name: str, settings: Mapping[str, Any], at_least: int) -> None:
    """Check a weight of the penalty: a number, or a list or tuple of one for each experience."""
    value = settings.get(name, 0.0)
    if not isinstance(value, list | tuple):
        finite(name, value, minimum=0.0)
        return
    if len(value) < at_least:
        raise ValueError(
            f"{name} must have at least {at_least} values (or be one number), got {value!r}"
        )
    for one in value:
        finite(name, one, minimum=0.0)


def _check_sample_size(settings: Mapping[str, Any], n_experiences: int) -> None:
    if settings.get("sample_size", n_experiences) < n_experiences:
        raise ValueError(
            f"sample_size={settings['sample_size']} must be at least the number of experiences, "
            f"{n_experiences}: agem draws sample_size // experiences patterns from each memory"
        )
