"""A model's shared modules in order from the output side: what trains first when few may train.

Output heads are no part of them, they always train.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

from torch import nn

from avalanche_mgem.arguments import instance, suggestion
from avalanche_mgem.model.freezing import moving_buffers
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.layers import find_heads
from avalanche_mgem.model.structure import parameters_by_module
from avalanche_mgem.model.targets import inside

Modules = (
    Sequence[str]
    | Mapping[str, Sequence[str]]
    | Callable[[nn.Module], Mapping[str, Sequence[str]]]
    | None
)

REST = "rest"


@dataclass(frozen=True)
class Blocks:
    """The modules that may train or be frozen, each as a whole, from the output side.

    Args:
        parameters: the names of the trainable parameters of each module, in model order.
        statistics: the names of the submodules of each that keep running statistics.
        heads: the names of the trainable parameters of output heads, which are in no module.
    """

    parameters: dict[str, tuple[str, ...]]
    statistics: dict[str, tuple[str, ...]]
    heads: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the modules, from the output side."""
        return tuple(self.parameters)


def check_modules(modules: object) -> None:
    """Raise ValueError for what can be known to be wrong without a model."""
    if modules is None or (callable(modules) and not isinstance(modules, type)):
        return
    if isinstance(modules, set | frozenset):
        raise ValueError(
            "modules must be None, a list of names or patterns, the one nearest to the output "
            "first, {name: [patterns]} or a callable(model), got a set, which has no order"
        )
    given = list(modules.values()) if isinstance(modules, Mapping) else [modules]
    if not given or not all(_is_names(patterns) for patterns in given):
        raise ValueError(
            "modules must be None, a list of names or patterns, {name: [patterns]} or a "
            f"callable(model), got {modules!r}"
        )


def own_modules(modules: Modules) -> Modules:
    """Return modules that no caller can change any more.

    Raises:
        ValueError: what can be known to be wrong without a model.
    """
    check_modules(modules)
    if modules is None or callable(modules):
        return modules
    if isinstance(modules, Mapping):
        return {name: tuple(patterns) for name, patterns in modules.items()}
    return tuple(modules)


def find_blocks(
    model: nn.Module,
    modules: Modules = None,
    *,
    heads: Heads = None,
    seen_heads: Iterable[str] | None = None,
) -> Blocks:
    """Return the shared modules of `model`, from the output side.

    Every trainable parameter belongs to exactly one module or to a head; one that a head shares
    with another module, as a tied embedding, is the head's.

    Args:
        model: whose parameters are divided; frozen ones are no part of it, and a module without
            trainable parameters is none.
        modules: None (ours): the reverse of the order in which the model has its submodules. The
            repeated children of containers, such as residual blocks and the layers of a
            Transformer, are a module each; what lies before the first, between two and behind the
            last is one module, such as the stem or the embeddings, but norms belong to what they
            follow. Auxiliary heads are modules where the model has them: GoogLeNet's come first. A
            model without such children has a module for each layer that owns parameters,
            its norm included. A list, the one nearest to the output first: names of submodules or
            shell patterns on names of submodules and parameters; each entry is one module. A
            mapping {name: [patterns]} or a callable(model) that returns {name: [parameter names]},
            in the same order. Shared parameters that they leave out are one module more, "rest",
            farthest from the output.
        heads: the output heads, see `avalanche_mgem.model.layers.find_gated_layers`.
        seen_heads: what a forward pass has shown of them, see there.

    Raises:
        ValueError: a pattern that matches nothing or heads only, a parameter in two modules, a
            model without a trainable parameter outside its heads.
    """
    instance("model", model, nn.Module, what="a torch module")
    check_modules(modules)
    tops = find_heads(model, heads, seen_heads)
    of_heads = {id(p) for top in tops for p in model.get_submodule(top).parameters()}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shared = [name for name, p in trainable.items() if id(p) not in of_heads]
    if not shared:
        raise ValueError(
            "model has no trainable parameter outside its output heads: there is no module to "
            f"choose (heads: {', '.join(tops) or 'none'})"
        )
    parameters: Mapping[str, Sequence[str]]
    if modules is None:
        parameters = dict(reversed(parameters_by_module(model, set(shared)).items()))
    else:
        parameters = _given(model, modules, shared, of_heads)
    return Blocks(
        {name: tuple(names) for name, names in parameters.items()},
        _statistics(model, parameters, tops),
        tuple(name for name, p in trainable.items() if id(p) in of_heads),
    )


def _given(
    model: nn.Module, modules: Modules, shared: Sequence[str], of_heads: Collection[int]
) -> dict[str, list[str]]:
    first = {id(p): name for name, p in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    owner: dict[str, str] = {}
    groups = _matched(model, modules, list(every))
    for group, names in groups.items():
        free = dict.fromkeys(
            first[id(every[name])] for name in names if id(every[name]) not in of_heads
        )
        if not free:
            raise ValueError(
                f"modules: {group!r} has parameters of output heads only, which always train "
                "(see heads)"
            )
        for name in free:
            if name in owner:
                raise ValueError(
                    f"modules: the parameter {name!r} is in both {owner[name]!r} and {group!r}"
                )
            owner[name] = group
    divided: dict[str, list[str]] = {group: [] for group in [*groups, REST]}
    for name in shared:
        divided[owner.get(name, REST)].append(name)
    return {group: names for group, names in divided.items() if names}


def _matched(model: nn.Module, modules: Modules, known: list[str]) -> dict[str, list[str]]:
    if callable(modules):
        made = modules(model)
        if not isinstance(made, Mapping):
            raise ValueError(f"modules must return {{name: [parameter names]}}, got {made!r}")
        named = {group: list(names) for group, names in made.items()}
        for group, names in named.items():
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"modules: the callable put {name!r} into {group!r}, which is no parameter "
                        f"of the model; {suggestion(name, known)}"
                    )
        return named
    if isinstance(modules, Mapping):
        patterns = {group: list(names) for group, names in modules.items()}
    else:
        patterns = {pattern: [pattern] for pattern in cast(Sequence[str], modules)}
    return {
        group: [name for pattern in each for name in _match(pattern, known)]
        for group, each in patterns.items()
    }


def _match(pattern: str, known: list[str]) -> list[str]:
    found = [n for n in known if any(fnmatchcase(part, pattern) for part in (n, *_ancestors(n)))]
    if not found:
        owners = dict.fromkeys(part for name in known for part in reversed([*_ancestors(name)]))
        raise ValueError(
            f"modules: {pattern!r} matches no submodule and no parameter; "
            f"{suggestion(pattern, [*owners, *known])}"
        )
    return found


def _ancestors(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _statistics(
    model: nn.Module, parameters: Mapping[str, Sequence[str]], heads: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return what keeps running statistics by the module that it belongs to.

    That is the one that has its parameters; without parameters, the one whose parameters come last
    before it, else first after it, in the smallest part of the model around it that has any.
    """
    owner = {name: module for module, names in parameters.items() for name in names}
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    place = {name: order[name.rpartition(".")[0]] for name in owner}
    inside_of: dict[str, list[str]] = {}
    for name in owner:
        for around in (*_ancestors(name), ""):
            inside_of.setdefault(around, []).append(name)
    found: dict[str, list[str]] = {module: [] for module in parameters}
    for name, submodule in model.named_modules():
        if not keeps_statistics(submodule) or any(inside(name, head) for head in heads):
            continue
        near = next(inside_of[a] for a in (name, *_ancestors(name), "") if a in inside_of)
        before = [n for n in near if place[n] <= order[name]]
        nearest = max(before, key=place.__getitem__) if before else min(near, key=place.__getitem__)
        found[owner[nearest]].append(name)
    return {module: tuple(names) for module, names in found.items()}


def keeps_statistics(module: nn.Module) -> bool:
    """Whether the module has running statistics, or the like: what moves without a gradient."""
    return next(moving_buffers(module), None) is not None


def _is_names(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence | Set):
        return False
    return bool(value) and all(isinstance(name, str) and name for name in value)
