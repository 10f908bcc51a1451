"""Layers of a model that are looked up again only where the model has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from avalanche_mgem.model.kinds import is_closed
from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.lora import active_adapters
from avalanche_mgem.model.units import GatedLayer


class ResolvedLayers:
    """Gated layers as they were found in a model, which they keep alive.

    They are still the model's as long as the modules on the way to them and inside of them are the
    same objects of the same classes, with the same parameters of the same shapes, of which the same
    are trained, and the same adapters are active. To compare that takes a fraction of the time of a
    search.

    Args:
        model: in which they were looked for.
        names: of all that were, those too that had no rows as they were frozen.
        layers: that were found.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], layers: list[GatedLayer]) -> None:
        self.layers = layers
        self._model = model
        self._modules = list(dict.fromkeys(_around(model, names)))
        self._seen = _seen_of(self._modules)
        # No other object has the identity of one that is alive.
        self._alive = [(*m._modules.values(), *m._parameters.values()) for m in self._modules]

    def are_of(self, model: nn.Module) -> bool:
        """Whether a search in this model would find the same."""
        return model is self._model and _seen_of(self._modules) == self._seen


def _around(model: nn.Module, names: Iterable[str]) -> Iterator[nn.Module]:
    """Yield the modules on the way to what has these names, and all inside of it.

    What has a layer may be several modules, as those of an adapter: it is watched as a whole.
    """
    for name in names:
        module = model
        for part in name.split("."):
            child = module._modules.get(part)
            if child is None or is_closed(module):
                break
            yield module
            module = child
        yield from module.modules()


def _seen_of(modules: Iterable[nn.Module]) -> list[object]:
    seen: list[object] = []
    for module in modules:
        children, parameters = module._modules, module._parameters
        seen.append(type(module))
        seen += children
        seen += map(id, children.values())
        seen += parameters
        seen += map(id, parameters.values())
        for parameter in parameters.values():
            if parameter is not None:
                seen.append(parameter.requires_grad)
                seen.append(None if is_lazy(parameter) else parameter.shape)
        if "lora_A" in module._modules:
            seen.append((active_adapters(module), getattr(module, "merged", False)))
    return seen
