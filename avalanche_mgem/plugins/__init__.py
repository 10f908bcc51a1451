"""The plugins: add one to any Avalanche strategy."""

from avalanche_mgem.plugins.mgem import MGEMPlugin

__all__ = ["MGEMPlugin"]
