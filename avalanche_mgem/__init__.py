"""Restrict what an update may do to the past: plugins for Avalanche.

The plugins are in `avalanche_mgem.plugins`; start there. Public names resolve on first use, because
Avalanche itself takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from avalanche_mgem.moved import follow_former_names

if TYPE_CHECKING:
    from avalanche_mgem.bridge.accumulation import (
        GradientAccumulation,
        with_gradient_accumulation,
    )
    from avalanche_mgem.bridge.precision import MixedPrecision, with_mixed_precision
    from avalanche_mgem.plugins import (
        ClipGradientPlugin,
        HybridMagnitudePlugin,
        MGEMPlugin,
        MIGUPlugin,
    )
    from avalanche_mgem.strategies import MGEM, MIGU, HybridMagnitude

__version__ = "0.1.0"

_HOMES = {
    "ClipGradientPlugin": "avalanche_mgem.plugins",
    "HybridMagnitudePlugin": "avalanche_mgem.plugins",
    "MGEMPlugin": "avalanche_mgem.plugins",
    "MIGUPlugin": "avalanche_mgem.plugins",
    "HybridMagnitude": "avalanche_mgem.strategies",
    "MGEM": "avalanche_mgem.strategies",
    "MIGU": "avalanche_mgem.strategies",
    "GradientAccumulation": "avalanche_mgem.bridge.accumulation",
    "with_gradient_accumulation": "avalanche_mgem.bridge.accumulation",
    "MixedPrecision": "avalanche_mgem.bridge.precision",
    "with_mixed_precision": "avalanche_mgem.bridge.precision",
}

__all__ = [
    "MGEM",
    "MIGU",
    "ClipGradientPlugin",
    "GradientAccumulation",
    "HybridMagnitude",
    "HybridMagnitudePlugin",
    "MGEMPlugin",
    "MIGUPlugin",
    "MixedPrecision",
    "__version__",
    "with_gradient_accumulation",
    "with_mixed_precision",
]


follow_former_names()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
