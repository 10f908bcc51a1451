"""A model's parameters, divided into the modules that are restricted each on its own.

The restricted parameters (those that require a gradient) are thought of as one long vector [P], in
the order of `model.named_parameters()`. A partition names sets of positions of that vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Literal

from torch import nn

from avalanche_mgem.arguments import as_list, instance, one_of, positive_int, suggestion
from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.walking import named_parameters

NamedParameters = Sequence[tuple[str, nn.Parameter]]
ParameterGroups = (
    int
    | Literal["layer", "tensor"]
    | Mapping[str, Sequence[str]]
    | Callable[[nn.Module], Mapping[str, Sequence[str]]]
)
Unassigned = Literal["error", "free", "module"]

Modules = tuple[tuple[slice, ...], ...]

REST = "rest"


@dataclass(frozen=True)
class Partition:
    """Disjoint, named sets of positions in the long vector of the restricted parameters.

    Args:
        names: of the M modules.
        slices: of [0, size), one tuple a module; neighbouring tensors are joined.
        size: P, the number of positions, those in no module included.
    """

    names: tuple[str, ...]
    slices: Modules
    size: int

    @cached_property
    def is_whole(self) -> bool:
        """Whether every position is in a module."""
        parts = (part for module in self.slices for part in module)
        sizes: list[int] = [part.stop - part.start for part in parts]
        return sum(sizes) == self.size


def check_parameter_groups(parameter_groups: ParameterGroups) -> None:
    """Raise ValueError for what can be known to be wrong without a model."""
    if isinstance(parameter_groups, str):
        one_of("parameter_groups", parameter_groups, ("layer", "tensor"))
    elif isinstance(parameter_groups, Integral):
        positive_int("parameter_groups", parameter_groups)
    elif isinstance(parameter_groups, Mapping):
        if not parameter_groups:
            raise ValueError("parameter_groups must name at least one module, got {}")
        for group, patterns in parameter_groups.items():
            as_list(f"parameter_groups[{group!r}]", patterns, str, what="a list of patterns")
    elif not callable(parameter_groups) or isinstance(parameter_groups, type):
        raise ValueError(
            "parameter_groups must be a whole number, 'layer', 'tensor', a mapping or a callable, "
            f"got {parameter_groups!r}"
        )


def restricted_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that training may move, by name; a shared parameter comes once.

    Those of lazy modules come as soon as a forward pass has given them their shape.
    """
    named = named_parameters(model)
    return [(name, p) for name, p in named if p.requires_grad and not is_lazy(p)]


def make_partition(
    model: nn.Module,
    parameter_groups: ParameterGroups = 1,
    *,
    unassigned_parameters: Unassigned = "error",
) -> Partition:
    """Divide the restricted parameters of `model` into modules.

    Args:
        model: whose parameters are divided; frozen ones are no part of it.
        parameter_groups: an int k: k equal contiguous blocks in model order, sizes within one of
            each other, tensors cut where a block ends. "layer": one module for each nn.Module that
            owns parameters. "tensor": one for each parameter. A mapping {name: [patterns]}: shell
            patterns on parameter names, or the names of submodules. A callable(model) that returns
            {name: [parameter names]}.
        unassigned_parameters: what becomes of restricted parameters that no pattern (or name)
            takes: "error", "free" (they are not restricted) or "module" (they are a module of their
            own, named "rest").

    Raises:
        ValueError: no trainable parameters, more blocks than positions, a pattern that matches no
            parameter, a parameter in two modules, parameters left out.
    """
    instance("model", model, nn.Module, what="a torch module")
    check_parameter_groups(parameter_groups)
    one_of("unassigned_parameters", unassigned_parameters, ("error", "free", "module"))
    parameters = restricted_parameters(model)
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient: nothing to restrict")
    if isinstance(parameter_groups, Integral):
        return _equal_blocks(parameters, int(parameter_groups))
    groups = _groups_by_name(model, parameters, parameter_groups)
    return _from_names(parameters, groups, unassigned_parameters)


def _equal_blocks(parameters: NamedParameters, count: int) -> Partition:
    size = sum(p.numel() for _, p in parameters)
    if count > size:
        raise ValueError(
            f"parameter_groups={count} needs at least {count} trainable parameters, "
            f"the model has {size}"
        )
    edges = [size * block // count for block in range(count + 1)]
    slices = tuple((slice(a, b),) for a, b in pairwise(edges))
    names = ("all",) if count == 1 else tuple(f"block{block}" for block in range(count))
    return Partition(names, slices, size)


def _groups_by_name(
    model: nn.Module, parameters: NamedParameters, parameter_groups: ParameterGroups
) -> dict[str, list[str]]:
    if parameter_groups == "tensor":
        return {name: [name] for name, _ in parameters}
    if parameter_groups == "layer":
        layers: dict[str, list[str]] = {}
        for name, _ in parameters:
            layers.setdefault(name.rpartition(".")[0] or "(model)", []).append(name)
        return layers
    known = _names(model)
    if isinstance(parameter_groups, Mapping):
        return {group: _match(group, p, known) for group, p in parameter_groups.items()}
    assert callable(parameter_groups)  # check_parameter_groups has seen to it
    what = "a callable that returns {name: [parameter names]}"
    named = instance("parameter_groups", parameter_groups(model), Mapping, what=what)
    for group, names in named.items():
        _require_known(group, names, known)
    return {group: [known[name] for name in names] for group, names in named.items()}


def _names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter, and the name that a shared parameter comes under."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every}


def _match(group: str, patterns: Sequence[str], known: Mapping[str, str]) -> list[str]:
    if isinstance(patterns, str):
        raise ValueError(
            f"parameter_groups[{group!r}] must be a list of patterns, got the string {patterns!r}"
        )
    matched: dict[str, None] = {}
    for pattern in patterns:
        found = [n for n in known if fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")]
        if not found:
            raise ValueError(
                f"parameter_groups[{group!r}]: the pattern {pattern!r} matches no parameter; "
                f"{suggestion(pattern, known)}"
            )
        matched.update(dict.fromkeys(known[name] for name in found))
    return list(matched)


def _require_known(group: str, names: Iterable[str], known: Mapping[str, str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"parameter_groups: the callable put {name!r} into {group!r}, which is no "
                f"parameter of the model; {suggestion(name, known)}"
            )


def _from_names(
    parameters: NamedParameters, groups: Mapping[str, Sequence[str]], unassigned: Unassigned
) -> Partition:
    owner: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name in owner:
                raise ValueError(
                    f"parameter_groups: the parameter {name!r} is in both {owner[name]!r} "
                    f"and {group!r}"
                )
            owner[name] = group
    left = [name for name, _ in parameters if name not in owner]
    if left and unassigned == "error":
        raise ValueError(
            f"parameter_groups leaves out {', '.join(map(repr, left))}; add a pattern for them, or "
            f"pass unassigned_parameters='free' or 'module'"
        )
    if unassigned == "module":
        owner.update(dict.fromkeys(left, REST))
    return _from_owners(parameters, owner)


def _from_owners(parameters: NamedParameters, owner: Mapping[str, str]) -> Partition:
    stops = list(accumulate(p.numel() for _, p in parameters))
    parts: dict[str, list[slice]] = {}
    for (name, parameter), stop in zip(parameters, stops, strict=True):
        if name not in owner:
            continue
        own = parts.setdefault(owner[name], [])
        start = stop - parameter.numel()
        if own and own[-1].stop == start:
            start = own.pop().start
        own.append(slice(start, stop))
    if not parts:
        raise ValueError("parameter_groups takes frozen parameters only: nothing to restrict")
    return Partition(tuple(parts), tuple(map(tuple, parts.values())), stops[-1])


def without(modules: Modules, held: Sequence[slice]) -> Modules:
    """Return the modules without the held positions; a module may be left with none."""
    for still in held:
        modules = tuple(tuple(_cut_out(module, still)) for module in modules)
    return modules


def _cut_out(module: Iterable[slice], still: slice) -> Iterator[slice]:
    for part in module:
        before = slice(part.start, min(part.stop, still.start))
        after = slice(max(part.start, still.stop), part.stop)
        yield from (side for side in (before, after) if side.start < side.stop)


class PartitionCache:
    """The last partition, made anew when parameters come, go, grow or freeze."""

    _of: Partition | None = None  # what was held of

    def __init__(self) -> None:
        self._key: object = None
        self._value: Partition | None = None
        self._held: object = None
        self._moving: Modules = ()

    def get(
        self,
        model: nn.Module,
        groups: ParameterGroups,
        unassigned: Unassigned,
        named: NamedParameters | None = None,
    ) -> Partition:
        """Return `make_partition` of these arguments.

        named: `restricted_parameters` of the model, where the caller has them.
        """
        named = restricted_parameters(model) if named is None else named
        key = [(name, p.shape) for name, p in named]
        if self._value is None or key != self._key:
            self._value = make_partition(model, groups, unassigned_parameters=unassigned)
            self._key, self._held = key, None
        return self._value

    def moving(self, partition: Partition, held: list[slice]) -> Modules:
        """Return the partition's modules without the held positions."""
        if self._held is None or held != self._held or partition is not self._of:
            self._moving = without(partition.slices, held)
            self._held, self._of = held, partition
        return self._moving
