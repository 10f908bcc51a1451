"""Layers whose weights are used while they are not called, as in torchvision's Swin.

A module may hand the weight of a linear layer to a function. No hook of the layer fires, and the
product with its weight is seen where the module around it runs.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from avalanche_mgem.model.sources import OUTPUT, Product
from avalanche_mgem.model.units import GatedLayer


def can_be_product(layer: GatedLayer) -> bool:
    """Whether a product with the layer's weight is the layer's output."""
    return isinstance(layer.module, nn.Linear) and layer.source == OUTPUT


def as_product(model: nn.Module, layer: GatedLayer) -> GatedLayer:
    """Return the layer with its output seen as a product in the module around it."""
    parent = model.get_submodule(layer.name.rpartition(".")[0])
    source = Product("weight", layer.module, 0, bias=None)
    return replace(layer, module=parent, source=source)
