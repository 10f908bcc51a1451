"""Several processes that train one model: what they add up, and what they agree on.

On torch.distributed's default group. In one process nothing here does anything. What is said to be
of all processes must be called by all of them, as often and in the same order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from avalanche_mgem.model.lazy import is_lazy

T = TypeVar("T")
_ANEW = "and anew where it has grown (see avalanche_mgem.model.distributed.data_parallel)"


def n_processes() -> int:
    """Return how many processes train together; 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def process_index() -> int:
    """Return which of them this one is, from 0."""
    return distributed.get_rank() if n_processes() > 1 else 0


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel; any other as it is.

    Its names are those that it has in one process, without "module." before them.
    """
    if isinstance(model, DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model


def data_parallel(model: nn.Module, **options: Any) -> nn.Module:
    """Return the model in DistributedDataParallel; in one process as it is.

    One that is wrapped already is wrapped anew where its parameters have changed since, because the
    wrapper averages the gradients of those alone that it found; parameters and buffers become those
    of the first process. Of all processes.

    Args:
        model: wrapped or not.
        options: of DistributedDataParallel. find_unused_parameters is True unless given: heads of
            other tasks, and what a task freezes, are unused in a step.
    """
    inner = unwrapped(model)
    if n_processes() == 1:
        return inner
    known = getattr(model, "_found_by_data_parallel", None)
    found = [id(p) for p in inner.parameters() if p.requires_grad]
    if inner is not model and known is not None and set(found) <= set(known):
        return model
    wrapper = DistributedDataParallel(inner, **{"find_unused_parameters": True, **options})
    wrapper.training = inner.training
    wrapper._found_by_data_parallel = found  # type: ignore[assignment]
    return wrapper


def add_up(tensor: Tensor) -> None:
    """Put the sum over all processes into each one's tensor, the same to the bit."""
    if n_processes() > 1:
        distributed.all_reduce(tensor)


def share_first(tensor: Tensor) -> None:
    """Put the first process's tensor into that of all."""
    if n_processes() > 1:
        distributed.broadcast(tensor, src=0)


def first_vector(vector: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the first process's vector, or None if that is what it has; of all processes.

    like: of the vector's shape, dtype and device.
    """
    if n_processes() == 1:
        return vector
    there = torch.tensor(float(vector is not None), device=like.device)
    share_first(there)
    if not there:
        return None
    vector = torch.empty_like(like) if vector is None else vector.contiguous()
    share_first(vector)
    return vector


def first_of_all(value: T) -> T:
    """Return the first process's value, anything that can be pickled."""
    if n_processes() == 1:
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0)
    first: T = values[0]
    return first


def values_of_all(value: T) -> list[T]:
    """Return each process's value, anything that can be pickled."""
    if n_processes() == 1:
        return [value]
    values: list[Any] = [None] * n_processes()
    distributed.all_gather_object(values, value)
    return values


def average_gradients(model: nn.Module) -> None:
    """Average the gradients over all processes, for a model that nobody wraps.

    A parameter that has a gradient in some processes only counts as zero in the others; where it
    has none in any, None stays None. The gradients are dense.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if n_processes() == 1 or not parameters:
        return
    used = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    add_up(used := used.float())
    for parameter, count in zip(parameters, used.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            add_up(parameter.grad)
            parameter.grad /= n_processes()


def require_in_step(model: nn.Module) -> None:
    """Raise, in all processes, unless parameters and gradients are the same in all of them.

    Raises:
        RuntimeError: names the first that differs, and says how gradients are averaged.
    """
    if n_processes() == 1:
        return
    named = list(unwrapped(model).named_parameters())
    own = [(n, _digest(None if is_lazy(p) else p.detach()), _digest(p.grad)) for n, p in named]
    all_of_them = values_of_all(own)
    if any(len(other) != len(own) for other in all_of_them):
        raise RuntimeError("the processes train models with different numbers of parameters")
    for places in zip(*all_of_them, strict=True):
        names, values, gradients = (set(column) for column in zip(*places, strict=True))
        if len(names) > 1 or len(values) > 1:
            raise RuntimeError(
                f"the parameter {places[0][0]!r} is not the same in all processes: begin with one "
                "seed in all, or wrap the model in DistributedDataParallel, which hands out those "
                f"of the first, {_ANEW}"
            )
        if len(gradients) > 1:
            raise RuntimeError(
                f"the gradient of {places[0][0]!r} is not the same in all processes: wrap the "
                f"model in DistributedDataParallel, {_ANEW}"
            )


def _digest(tensor: Tensor | None) -> str:
    """Something that two tensors have in common if they are the same, and hardly ever otherwise."""
    if tensor is None:
        return "none"
    return repr(tensor.sum(dtype=torch.float64).item())


def require_whole_parameters(model: nn.Module, what: str) -> None:
    """Raise ValueError for parameters that are spread over processes.

    Args:
        model: whose parameters are looked at.
        what: needs them whole, for the error.
    """
    classes = {parent.__name__ for module in model.modules() for parent in type(module).__mro__}
    kinds = classes & {"FullyShardedDataParallel", "DeepSpeedEngine"}
    # Of FSDP2's and tensor parallel parameters (DTensor), and of DeepSpeed's ZeRO-3.
    signs = {"full_tensor": "DTensor", "ds_id": "DeepSpeed"}
    kinds |= {name for p in model.parameters() for sign, name in signs.items() if hasattr(p, sign)}
    if kinds:
        raise ValueError(
            f"{what} needs whole parameters and gradients in every process, and these are spread "
            f"over them ({', '.join(sorted(kinds))}); use DistributedDataParallel"
        )
