"""What torch's lazy modules have before their first forward pass, which decides on the shapes."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["is_lazy", "uninitialized"]


def uninitialized(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that have no shape yet.

    Of such a tensor nothing can be asked but its dtype, its device and whether it is trained.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor)]
