"""Restrict what an update may do to the past: plugins for Avalanche.

The plugins are in `avalanche_mgem.plugins`; start there. Public names resolve on first use, because
Avalanche itself takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avalanche_mgem.plugins import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin
    from avalanche_mgem.strategies import MGEM, MIGU, HybridMagnitude

__version__ = "0.1.0"

_HOMES = {
    "HybridMagnitudePlugin": "avalanche_mgem.plugins",
    "MGEMPlugin": "avalanche_mgem.plugins",
    "MIGUPlugin": "avalanche_mgem.plugins",
    "HybridMagnitude": "avalanche_mgem.strategies",
    "MGEM": "avalanche_mgem.strategies",
    "MIGU": "avalanche_mgem.strategies",
}

__all__ = [
    "MGEM",
    "MIGU",
    "HybridMagnitude",
    "HybridMagnitudePlugin",
    "MGEMPlugin",
    "MIGUPlugin",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
