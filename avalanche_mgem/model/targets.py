"""Which names `target_modules` matches; which layers can be gated at all is said in layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeGuard

from torch import nn

from avalanche_mgem.arguments import as_list, suggestion

TargetModules = str | Collection[str] | None
Layers = Mapping[str, nn.Module]

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_WRAPPED = {"module", "model", "base_model", "_orig_mod"}


def join(prefix: str, name: str) -> str:
    """Return the name of what is called `name` in the module `prefix`; "" is the model itself."""
    return f"{prefix}.{name}" if prefix else name


def inside(name: str, module: str) -> bool:
    """Whether the module `name` is the other or is a part of it."""
    return not module or name == module or name.startswith(f"{module}.")


def is_lora(module: nn.Module) -> bool:
    """Whether the module has the attributes of peft's LoRA layers."""
    return all(hasattr(module, name) for name in ("lora_A", "lora_B", "base_layer"))


def convolves(module: nn.Module) -> bool:
    """Whether the module is a convolution, a transposed one too, or a LoRA layer on one."""
    return isinstance(getattr(module, "base_layer", module), _CONVOLUTIONS)


def is_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether the module is torch's attention, whose forward pass is torch's own."""
    return _forwards_as(module, nn.MultiheadAttention)


def is_recurrent(module: nn.Module) -> bool:
    """Whether the module is one of torch's recurrent layers or cells."""
    return any(_forwards_as(module, kind) for kind in _RECURRENT)


def _forwards_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    # What a subclass that computes something else hands out is not known.
    return isinstance(module, kind) and type(module).forward is kind.forward


def check_target_modules(target_modules: TargetModules) -> None:
    """Raise ValueError for what names no layer of any model: see `find_gated_layers`."""
    if isinstance(target_modules, str):
        _expression(target_modules, "")
    elif target_modules is not None:
        _names(target_modules)


def wrapping(model: nn.Module) -> str:
    """Return the name of what DataParallel, torch.compile, peft or a user wrapped; "" for none."""
    name = ""
    while len(children := dict(model.named_children())) == 1 and children.keys() <= _WRAPPED:
        ((child, model),) = children.items()
        name = join(name, child)
    return name


def target_names(model: nn.Module, layers: Layers, target_modules: TargetModules) -> list[str]:
    """Return the names of those of `layers` that are meant, in their order.

    Args:
        model: that the layers are of.
        layers: those to choose from, which are no heads, by name. A layer that is a part of a
            module, as of a mixture of experts, goes by the module's name too.
        target_modules: see `find_gated_layers`.

    Raises:
        ValueError: a target that matches none of the layers, or no target at all.
    """
    if target_modules is None:
        return _of_their_own(model, layers)
    matchers: dict[str, Callable[[str], bool]]
    if isinstance(target_modules, str) and target_modules == "all-linear":
        linear = {name for name, m in layers.items() if not (convolves(m) or is_recurrent(m))}
        matchers = {"all-linear": linear.__contains__}
    elif isinstance(target_modules, str):
        matchers = {target_modules: _expression(target_modules, wrapping(model))}
    else:
        matchers = {target: _suffix(target) for target in _names(target_modules)}
    modules = {id(module): name for name, module in model.named_modules()}
    chosen: set[str] = set()
    for target, matches in matchers.items():
        matched = {n for n, m in layers.items() if matches(n) or matches(modules[id(m)])}
        if not matched:
            is_expression = target == target_modules != "all-linear"
            raise ValueError(_no_match(model, target, layers, is_expression=is_expression))
        chosen |= matched
    return [name for name in layers if name in chosen]


def _of_their_own(model: nn.Module, layers: Layers) -> list[str]:
    """Return the layers whose weights no other module has."""
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    own = [
        name
        for name, module in layers.items()
        if is_lora(module) or all(owners[weight] == 1 for weight in _weights(module))
    ]
    if not own:
        raise ValueError(
            "model has no layer with rows to gate: every weight is shared with another module, and "
            f"such layers must be named in target_modules; known: {', '.join(layers)}"
        )
    return own


def _weights(module: nn.Module) -> Iterator[int]:
    return (id(p) for n, p in module.named_parameters(recurse=False) if "bias" not in n)


def _expression(target: str, wrapping: str) -> Callable[[str], bool]:
    """Match names as a regular expression does, in a wrapper also without the wrapper's name."""
    try:
        expression = re.compile(target)
    except re.error as error:
        raise ValueError(
            f"target_modules must be a list of names, 'all-linear' or a regular expression, "
            f"got {target!r}: {error}"
        ) from error

    def matches(name: str) -> bool:
        plain = name[len(wrapping) + 1 :] if wrapping else name
        return bool(expression.fullmatch(name) or expression.fullmatch(plain))

    return matches


def _suffix(target: str) -> Callable[[str], bool]:
    return lambda name: name == target or name.endswith(f".{target}")


def _names(target_modules: Collection[str]) -> list[str]:
    what = "None, 'all-linear', a regular expression or a list of at least one name"
    names = as_list("target_modules", target_modules, str, what=what)
    if not names:
        raise ValueError(f"target_modules must be {what}, got {target_modules!r}")
    return names


def _no_match(model: nn.Module, target: str, layers: Layers, *, is_expression: bool) -> str:
    """Say what the target matches instead, and which names come near to it."""
    said = "matches no layer"
    if any(_suffix(target)(name) for name, _ in model.named_modules()):
        said = "names no layer with rows to gate, or an output head (see heads)"
    if is_expression:
        said += "; a string is a regular expression that must match a whole name, a list has names"
    return f"target_modules: {target!r} {said}; {_known(target, layers, target.count('.') + 1)}"


def _known(target: str, layers: Iterable[str], depth: int) -> str:
    """Suggest the last parts of names, as many parts as the target has, each once."""
    return suggestion(target, dict.fromkeys(".".join(n.split(".")[-depth:]) for n in layers))
