"""Steps of torch's element-wise optimisers, a piece of a parameter at a time.

A step makes intermediate results of a parameter's size. Of a very large parameter these are more
than the C library keeps for reuse, so that each step asks the system for new pages; a piece of it,
stepped as a small parameter that shares its storage, needs none. The numbers are the same to the
bit.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, MutableMapping
from typing import Any

from torch import Tensor, nn, optim

# Their step treats every element of a parameter alike, so some can be stepped without the others.
# Exactly these classes: one that is derived from them may do anything.
_ELEMENT_WISE = frozenset(
    {
        optim.SGD,
        optim.Adam,
        optim.AdamW,
        optim.Adagrad,
        optim.RMSprop,
        optim.Rprop,
        optim.Adadelta,
        optim.Adamax,
        optim.NAdam,
        optim.RAdam,
        optim.ASGD,
    }
)

# Elements of a parameter that are stepped at a time on a CPU: they stay in its cache together with
# their gradient and their state.
CACHED = 2**17
# Bytes beyond which a parameter is stepped in pieces: what glibc's malloc keeps for reuse at most,
# the largest value of its dynamic threshold for mmap on 64 bits.
LONG = 2**25

Group = dict[str, Any]
State = MutableMapping[Tensor, Any]


def is_element_wise(optimizer: optim.Optimizer, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether rows of these parameters can be stepped alone.

    So it is with torch's own element-wise optimisers, where all state has a parameter's shape.
    """
    if type(optimizer) not in _ELEMENT_WISE:
        return False
    parameters = list(parameters)
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        return False  # one weight with rows along one dimension and along another
    return all(_is_plain(parameter, optimizer) for parameter in parameters)


def _is_plain(parameter: nn.Parameter, optimizer: optim.Optimizer) -> bool:
    gradient = parameter.grad
    if gradient is not None and (gradient.is_sparse or gradient.dtype != parameter.dtype):
        return False
    values = optimizer.state.get(parameter, {}).values()
    shapes = [value.shape for value in values if isinstance(value, Tensor) and value.ndim > 0]
    return all(shape == parameter.shape for shape in shapes)


def step_alone(optimizer: optim.Optimizer, parameter: nn.Parameter) -> None:
    """Let an element-wise optimiser step one of its parameters alone, in pieces if it is long."""
    for group in optimizer.param_groups:
        if any(parameter is each for each in group["params"]):
            if _is_long(optimizer, group, parameter):
                _step_in_pieces(optimizer, group, parameter)
            else:
                _step(optimizer, optimizer.state, {**group, "params": [parameter]})


def long_parameters(optimizer: optim.Optimizer, without: Container[int]) -> Iterator[nn.Parameter]:
    """Yield the parameters of an element-wise optimiser that are sooner stepped in pieces.

    without: the ids of those that are not asked for.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in without and _is_long(optimizer, group, parameter):
                yield parameter


def like(optimizer: optim.Optimizer, state: State, groups: list[Group]) -> optim.Optimizer:
    """Return an optimiser with the same settings, but with these parameters and this state."""
    other = object.__new__(type(optimizer))
    vars(other).update(vars(optimizer))
    other.state, other.param_groups = state, groups  # type: ignore[assignment]
    return other


def _is_long(optimizer: optim.Optimizer, group: Group, parameter: nn.Parameter) -> bool:
    """Whether a parameter is very large and can be stepped in pieces.

    Not in its first step, which makes its state; nor by a fused kernel, which reads it once anyway.
    """
    size = parameter.numel() * parameter.element_size()
    if size <= LONG or parameter.device.type != "cpu" or group.get("fused"):
        return False
    state, gradient = optimizer.state.get(parameter), parameter.grad
    if not state or gradient is None or not _is_plain(parameter, optimizer):
        return False
    whole = [value for value in state.values() if isinstance(value, Tensor) and value.ndim > 0]
    return len(whole) > 0 and all(t.is_contiguous() for t in (parameter, gradient, *whole))


def _step_in_pieces(optimizer: optim.Optimizer, group: Group, parameter: nn.Parameter) -> None:
    assert parameter.grad is not None
    state = optimizer.state[parameter]
    flat = {k: v.view(-1) for k, v in state.items() if isinstance(v, Tensor) and v.ndim > 0}
    others = {key: value for key, value in state.items() if key not in flat}
    values, gradient, after = parameter.detach().view(-1), parameter.grad.view(-1), others
    for start in range(0, len(values), CACHED):
        part = slice(start, start + CACHED)
        piece = nn.Parameter(values[part], requires_grad=parameter.requires_grad)
        piece.grad = gradient[part]
        after = {k: v.clone() if isinstance(v, Tensor) else v for k, v in others.items()}
        own: State = {piece: {**{k: v[part] for k, v in flat.items()}, **after}}
        _step(optimizer, own, {**group, "params": [piece]})
        after = {key: own[piece][key] for key in others}
    for key, value in after.items():
        if isinstance(value, Tensor):
            others[key].copy_(value)
        else:
            state[key] = value


def _step(optimizer: optim.Optimizer, state: State, group: Group) -> None:
    type(optimizer).step.__wrapped__(like(optimizer, state, [group]))  # type: ignore[attr-defined]
