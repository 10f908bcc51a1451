"""A model's modules and parameters, in a fraction of the time that torch's own walks take.

What is resolved at every iteration is found by these, as no module or parameter may be remembered:
heads grow, and plugins replace models.
"""

from __future__ import annotations

from torch import nn


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return what `model.named_parameters()` gives."""
    walked: dict[nn.Module, str] = {}
    own = type(model).named_parameters is nn.Module.named_parameters
    if not (own and _walk(model, "", walked)):
        return list(model.named_parameters())
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for module, prefix in walked.items():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in found:
                found[id(parameter)] = (prefix + name, parameter)
    return list(found.values())


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return what `model.modules()` gives."""
    walked: dict[nn.Module, str] = {}
    return list(walked) if _walk(model, "", walked) else list(model.modules())


def _walk(module: nn.Module, prefix: str, walked: dict[nn.Module, str]) -> bool:
    """Note a module and those in it, each with what stands before its parameters' names.

    Return False where one of them has a walk of its own.
    """
    if module in walked:
        return True
    if type(module).named_modules is not nn.Module.named_modules:
        return False
    walked[module] = prefix
    for name, child in module._modules.items():
        if child is not None and not _walk(child, f"{prefix}{name}.", walked):
            return False
    return True
