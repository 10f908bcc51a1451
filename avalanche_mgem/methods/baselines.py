"""Checks of the settings of the methods that are Avalanche's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_mgem.arguments import finite, one_of, positive_int

_WHOLE = ("mem_size", "patterns_per_exp", "sample_size")
_NOT_NEGATIVE = ("ewc_lambda", "decay_factor", "memory_strength")
_POSITIVE = ("temperature", "eps")


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
