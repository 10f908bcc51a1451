"""Which layers of a model take a low-rank adapter of peft."""

from __future__ import annotations

import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.layers import find_heads
from avalanche_mgem.model.targets import TargetModules, convolves, inside, target_names

# Mamba's kernels read the weights of these and never call them; peft refuses the first two.
_MAMBAS = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
_READ_BY_KERNELS = {"out_proj", "conv1d", "dt_proj"}


def adapted_names(
    model: nn.Module, target_modules: TargetModules, heads: Heads = None, *, rank: int = 8
) -> list[str]:
    """Return the names of the layers of `model` that get adapters, in module order.

    Args:
        model: without adapters yet.
        target_modules: see `avalanche_mgem.huggingface.LoRAPlugin`.
        heads: the output heads, which get none.
        rank: of the adapters.

    Raises:
        ValueError: there is no such layer, a name or pattern matches nothing, or a layer that is
            meant cannot take an adapter of this rank.
    """
    tops = find_heads(model, heads)
    layers = dict(_adaptable(model))
    free = {n: m for n, m in layers.items() if not any(inside(n, top) for top in tops)}
    if not free:
        raise ValueError(
            "model has no layer that can take an adapter, which are Linear, Conv2d and Conv1D and "
            f"no output heads; heads: {', '.join(tops) or 'none'}"
        )
    unfit = dict(_unfit(model, free, rank))
    if not (target_modules is None or target_modules == "all-linear"):
        names = target_names(model, free, target_modules)
        for name in names:
            if name in unfit:
                raise ValueError(f"target_modules: {name!r} cannot take an adapter: {unfit[name]}")
        return names
    fit = {name: module for name, module in free.items() if name not in unfit}
    if not fit:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in islice(unfit.items(), 3))
        raise ValueError(f"model has no layer that can take an adapter of rank={rank}: {reasons}")
    if target_modules is None:
        return _usual(model, fit) or target_names(model, fit, None)
    for name, reason in unfit.items():
        if not convolves(free[name]):
            warnings.warn(
                f"target_modules='all-linear' leaves out {name!r}: {reason}", stacklevel=2
            )
    return target_names(model, fit, target_modules)


def _adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that could take an adapter. Parts of nn.MultiheadAttention are never called."""
    closed: str | None = None
    for name, module in model.named_modules():
        if closed is not None and inside(name, closed):
            continue
        if isinstance(module, nn.MultiheadAttention):
            closed = name
        elif isinstance(module, nn.Linear | nn.Conv2d) or _is_conv1d(module):
            yield name, module


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, as in gpt2, which alone peft knows by this name."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def _unfit(model: nn.Module, layers: dict[str, nn.Module], rank: int) -> Iterator[tuple[str, str]]:
    """Yield the layers that no adapter of peft fits, and why."""
    # Not children(), which has each child of a parent once.
    places = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    kernels = _READ_BY_KERNELS if _MAMBAS & set(_model_types(model)) else set()
    for name, module in layers.items():
        if places[id(module)] > 1:
            yield name, "it is in several places of the model, of which peft would change one"
        elif name.rpartition(".")[2] in kernels:
            yield name, "Mamba's kernels read its weight and never call it"
        elif reason := _unfit_itself(module, rank):
            yield name, reason


def _unfit_itself(module: nn.Module, rank: int) -> str:
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        return "it is lazy: run the model forward once before"
    if isinstance(module, nn.Conv2d):
        return _unfit_convolution(module, rank)
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        return _unfit_subclass(module)
    return ""


def _unfit_convolution(module: nn.Conv2d, rank: int) -> str:
    if rank % module.groups:
        return (
            f"it is a convolution of groups={module.groups}, which rank={rank} must be a multiple "
            "of; choose another rank, or leave it out"
        )
    # peft's convolution A has the kernel, stride and padding of the layer and nothing more.
    if any(step != 1 for step in module.dilation):
        return f"it is a convolution of dilation={module.dilation}, which peft's adapters lack"
    if module.padding_mode != "zeros":
        return f"it has padding_mode={module.padding_mode!r}, which peft's adapters lack"
    try:  # A and B are made by the layer's own class.
        inspect.signature(type(module)).bind(1, rank, 1, 1, 0, groups=1, bias=False)
    except TypeError as error:
        return f"{type(module).__name__} is not made as a Conv2d is ({error})"
    return ""


def _unfit_subclass(module: nn.Linear) -> str:
    """Try whether a subclass of Linear answers as one: some routers return a tuple."""
    weight = module.weight
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        return ""  # quantised: peft has layers of its own for these
    training, module.training = module.training, False
    try:
        with torch.no_grad():
            output = type(module).forward(module, weight.new_zeros(1, module.in_features))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"{type(module).__name__} takes other inputs than a Linear ({error})"
    finally:
        module.training = training
    if isinstance(output, Tensor) and output.shape == (1, module.out_features):
        return ""
    return f"the output of {type(module).__name__} is not that of a Linear"


def _usual(model: nn.Module, free: dict[str, nn.Module]) -> list[str]:
    """Return the layers that peft takes in models of this kind; none where it knows it not."""
    from peft.utils import constants

    known: dict[str, Any] = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for kind in _model_types(model):
        targets = known.get(kind)
        if isinstance(targets, str):
            return [name for name in free if re.fullmatch(targets, name)]
        if targets:
            # By the last part: which of the names a model has differs between its versions.
            return [name for name in free if name.rpartition(".")[2] in targets]
    return []


def _model_types(model: nn.Module) -> Iterator[str]:
    """Yield what transformers calls the models in `model`."""
    for module in model.modules():
        yield getattr(getattr(module, "config", None), "model_type", None) or ""
