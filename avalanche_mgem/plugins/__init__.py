"""The plugins: add one to any Avalanche strategy."""

from avalanche_mgem.plugins.clipping import ClipGradientPlugin
from avalanche_mgem.plugins.hybrid import HybridMagnitudePlugin
from avalanche_mgem.plugins.mgem import MGEMPlugin
from avalanche_mgem.plugins.migu import MIGUPlugin

__all__ = ["ClipGradientPlugin", "HybridMagnitudePlugin", "MGEMPlugin", "MIGUPlugin"]
