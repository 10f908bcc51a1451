"""Restrict what an update may do to the past: plugins for Avalanche.

The plugins are in `avalanche_mgem.plugins`; start there. Public names resolve on first use, because
Avalanche itself takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.lazy import public_names
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

__getattr__, __dir__ = public_names(
    __name__,
    {
        "avalanche_mgem.bridge.accumulation": (
            "GradientAccumulation",
            "with_gradient_accumulation",
        ),
        "avalanche_mgem.bridge.precision": ("MixedPrecision", "with_mixed_precision"),
        "avalanche_mgem.plugins": (
            "ClipGradientPlugin",
            "HybridMagnitudePlugin",
            "MGEMPlugin",
            "MIGUPlugin",
        ),
        "avalanche_mgem.strategies": ("MGEM", "MIGU", "HybridMagnitude"),
    },
)
