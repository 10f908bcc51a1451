"""Layers of a model that are looked up again only where the model has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from avalanche_mgem.model.lora import active_adapters
from avalanche_mgem.model.sources import Product
from avalanche_mgem.model.units import GatedLayer


class ResolvedLayers:
    """Gated layers as they were found in a model, which they keep alive.

    They are still the model's as long as the modules on the way to them and inside of them are the
    same objects of the same classes, with the same parameters, of which the same are trained, and
    the same adapters are active. To compare that takes a fraction of the time of a search.
    """

    def __init__(self, model: nn.Module, layers: list[GatedLayer]) -> None:
        self.layers = layers
        self._model = model
        self._modules = list(dict.fromkeys(_around(model, layers)))
        self._seen = _seen_of(self._modules)

    def are_of(self, model: nn.Module) -> bool:
        """Whether a search in this model would find the same."""
        return model is self._model and _seen_of(self._modules) == self._seen


def _around(model: nn.Module, layers: Iterable[GatedLayer]) -> Iterator[nn.Module]:
    """Yield the modules on the way to the layers, and all inside of them."""
    for layer in layers:
        module: nn.Module | None = model
        for part in layer.name.split("."):
            if module is not None:
                yield module
                module = module._modules.get(part)
        yield from layer.module.modules()
        if isinstance(layer.source, Product):
            yield from layer.source.owner.modules()


def _seen_of(modules: Iterable[nn.Module]) -> list[object]:
    seen: list[object] = []
    for module in modules:
        seen.append(type(module))
        seen.extend(map(id, module._modules.values()))
        for parameter in module._parameters.values():
            seen.append(id(parameter))
            seen.append(parameter is not None and parameter.requires_grad)
        if "lora_A" in module._modules:
            seen.append((active_adapters(module), getattr(module, "merged", False)))
    return seen
