"""A model's modules, found by structure and not by name.

Residual blocks and the layers of a Transformer are the repeated children of containers; where
nothing repeats, each layer is a module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from avalanche_mgem.model.targets import inside, is_lora, join

_ROOT = "(model)"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORM = re.compile(r"norm(\dd)?$", re.IGNORECASE)


@dataclass(frozen=True)
class _Unit:
    """A piece of the model, in module order."""

    name: str
    parameters: tuple[str, ...]
    is_block: bool = False
    is_norm: bool = False


def parameters_by_module(model: nn.Module, chosen: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of the chosen parameters by the module that they belong to, in model order.

    The repeated children of containers are a module each, and what lies between them; without such
    children, each layer is. Each parameter is in one module. Parameters that the model itself owns
    are called "(model)".

    Args:
        model: whose submodules are looked at.
        chosen: names of parameters, as `named_parameters` has them.
    """
    units = [
        replace(unit, parameters=own)
        for unit in _units(model, "", _repeated(model))
        if (own := tuple(name for name in unit.parameters if name in chosen))
    ]
    groups: list[list[_Unit]] = []
    in_runs = any(unit.is_block for unit in units)
    for unit in units:
        last = groups[-1] if groups else []
        joins = unit.is_norm or (in_runs and not unit.is_block and not _ends_run(last))
        # Norms in front of everything belong to what follows them.
        leads = all(other.is_norm for other in last)
        if last and (joins or leads):
            last.append(unit)
        else:
            groups.append([unit])
    return {_name(group, units): sum((u.parameters for u in group), ()) for group in groups}


def _ends_run(group: list[_Unit]) -> bool:
    return any(unit.is_block for unit in group)


def _name(group: list[_Unit], units: list[_Unit]) -> str:
    """Return the name of the submodule that the group is, else that of its first part."""
    blocks = [unit for unit in group if unit.is_block]
    own = blocks or [unit for unit in group if not unit.is_norm] or group
    parts = [unit.name.split(".") for unit in own]
    depth = next((i for i, level in enumerate(zip(*parts, strict=False)) if len({*level}) > 1), -1)
    common = ".".join(parts[0][:depth]) if depth >= 0 else own[0].name
    outside = any(unit not in group and inside(unit.name, common) for unit in units)
    return own[0].name if not common or outside else common


def _units(module: nn.Module, name: str, repeated: Collection[type]) -> Iterator[_Unit]:
    """Yield the pieces of a module in module order."""
    own = tuple(join(name, n) for n, _ in module.named_parameters(recurse=False))
    if own:
        yield _Unit(name or _ROOT, own)
    siblings = Counter(type(child) for child in module.children() if _is_composite(child))
    for child_name, child in module.named_children():
        full = join(name, child_name)
        below = tuple(join(full, n) for n, _ in child.named_parameters())
        if not _is_composite(child):
            yield _Unit(full, below, is_norm=_is_norm(child))
        elif _is_plain(child) or _is_stage(child):
            yield from _units(child, full, repeated)
        elif isinstance(module, nn.ModuleList) or (
            siblings[type(child)] > 1
            or (isinstance(module, _CONTAINERS) and type(child) in repeated)
        ):
            yield _Unit(full, below, is_block=True)
        else:
            yield from _units(child, full, repeated)


def _repeated(model: nn.Module) -> set[type]:
    """Return the classes that containers have more than once."""
    count = Counter(
        type(child)
        for module in model.modules()
        if isinstance(module, _CONTAINERS)
        for child in module.children()
        if _is_composite(child)
    )
    return {kind for kind, times in count.items() if times > 1}


def _is_composite(module: nn.Module) -> bool:
    """Whether a module has more than one layer; a norm belongs to its layer."""
    return len(list(islice(_layers(module), 2))) > 1


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what owns parameters, but norms; what is known to be one layer comes as one."""
    closed = isinstance(module, nn.MultiheadAttention) or is_lora(module) or is_parametrized(module)
    owns = any(True for _ in module.parameters(recurse=False))
    if closed or (owns and not _is_norm(module)):
        yield module
    for child in () if closed else module.children():
        yield from _layers(child)


def _is_norm(module: nn.Module) -> bool:
    return bool(_NORM.search(type(module).__name__))


def _is_plain(module: nn.Module) -> bool:
    # A class made from a container, such as a convolution with its norm, is a thing of its own.
    return type(module) in _CONTAINERS


def _is_stage(module: nn.Module) -> bool:
    """Whether a module's repeated children are blocks, so that it is none: an encoder, a stage."""
    rows = [c for c in module.children() if isinstance(c, _CONTAINERS)]
    rows += [module] if isinstance(module, _CONTAINERS) else []
    return any(_is_row(container) for container in rows)


def _is_row(container: nn.Module) -> bool:
    with_parameters = [c for c in container.children() if any(True for _ in c.parameters())]
    kinds = {type(child) for child in with_parameters}
    return len(kinds) == 1 and all(_is_composite(c) and not _is_plain(c) for c in with_parameters)
