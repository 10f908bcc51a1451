"""The parameters behind a layer's weight: those whose row i makes row i of the weight.

Of most layers that is the weight itself. Weight normalisation, pruning and parametrisations of
torch make the weight anew in every forward pass from other tensors; where a row of it is made of
its own row of these alone, holding that row holds the weight's.
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_TRIALS = 2
# What was found of a parametrisation: its length and the dimension, and whether rows are apart.
_known: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], bool]] = WeakKeyDictionary()


class CoupledRowsError(ValueError):
    """No row of the weight can be held by holding rows: the message says why."""


def tensors_behind(module: nn.Module, dim: int) -> dict[str, nn.Parameter]:
    """Return the trainable parameters that `module.weight` is made of, by name in the module.

    Each has as many rows along `dim` as the weight has, and row i of the weight depends on row i of
    them alone. Empty where they are frozen.

    Args:
        module: that has a weight.
        dim: along which the weight's output units lie.

    Raises:
        CoupledRowsError: a row of the weight depends on other rows too, as under spectral
            normalisation; what makes the weight is not known.
    """
    if not isinstance(module, nn.Module):  # AdaLoRA keeps bare parameters where LoRA has layers
        raise CoupledRowsError("it is no layer")
    # First, because to read such a weight is to make it: spectral norms iterate each time.
    if is_parametrized(module, "weight"):
        return _behind_parametrization(module, dim)
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter):
        return _trained({"weight": weight})
    return _behind_hooks(module, dim)


def _trained(parameters: dict[str, Any]) -> dict[str, nn.Parameter]:
    return {name: p for name, p in parameters.items() if p.requires_grad}


def _behind_parametrization(module: nn.Module, dim: int) -> dict[str, nn.Parameter]:
    parametrizations: Any = module.parametrizations
    chain = parametrizations["weight"]
    kinds = ", ".join(type(step).__name__ for step in chain)
    own = dict(chain.named_parameters(recurse=False))
    further = [name for name, p in chain.named_parameters() if name not in own and p.requires_grad]
    if further:
        raise CoupledRowsError(f"{kinds} makes its weight with parameters of its own: {further[0]}")
    asked = len(chain), dim
    if _known.get(chain, (None, False))[0] != asked:  # every step asks
        _known[chain] = asked, _is_row_by_row(chain, list(own), dim)
    if not _known[chain][1]:
        raise CoupledRowsError(f"{kinds} makes each row of its weight of other rows too")
    return _trained({f"parametrizations.weight.{name}": p for name, p in own.items()})


@torch.no_grad()
def _is_row_by_row(chain: Any, names: list[str], dim: int) -> bool:
    """Whether other rows of the weight stay the same to the bit when some rows behind it change."""
    chain = copy.deepcopy(chain).eval()  # some count, and change their state, while training
    before: Tensor = chain()
    n = before.shape[dim]
    tensors = [getattr(chain, name) for name in names]
    if any(tensor.ndim <= dim or tensor.shape[dim] != n for tensor in tensors):
        return False
    generator = torch.Generator().manual_seed(0)
    for _ in range(_TRIALS):
        moved = torch.rand(n, generator=generator) < 0.5
        if not torch.equal(chain(), before):
            return False  # it draws random numbers
        for tensor in tensors:
            rows = tensor.data.movedim(dim, 0)
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            rows[moved.to(rows.device)] += noise[moved]
        after: Tensor = chain()
        still = ~moved.to(after.device)
        if not torch.equal(after.movedim(dim, 0)[still], before.movedim(dim, 0)[still]):
            return False
        before = after
    return True


def _behind_hooks(module: nn.Module, dim: int) -> dict[str, nn.Parameter]:
    """Of a weight that a forward pre-hook makes: torch's older normalisations, and pruning."""
    for hook in module._forward_pre_hooks.values():
        kind = type(hook).__name__
        if getattr(hook, "name", None) == "weight" and kind == "WeightNorm":
            if getattr(hook, "dim", None) != dim:
                raise CoupledRowsError("weight_norm shares its norms among the rows")
            return _trained({name: getattr(module, name) for name in ("weight_g", "weight_v")})
        if getattr(hook, "name", None) == "weight":
            raise CoupledRowsError(f"{kind} makes each row of its weight of other rows too")
        if getattr(hook, "_tensor_name", None) == "weight" and hasattr(module, "weight_mask"):
            return _trained({"weight_orig": module.weight_orig})
    raise CoupledRowsError("its weight is no parameter, and what makes it is not known")
