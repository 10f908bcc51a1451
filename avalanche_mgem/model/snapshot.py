"""What optimisers have before a step, to put it back."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.optimizers import optimizers_within, parameters_of


class OptimizerSnapshot:
    """Copies of parameters, their state and settings, of optimisers and those inside of them.

    It takes the memory of the parameters and of the optimisers' state.
    """

    def __init__(self, *optimizers: Any) -> None:
        within = {id(e): e for each in optimizers for e in optimizers_within(each)}
        self._optimizers = [each for each in within.values() if hasattr(each, "state")]
        parameters = {id(p): p for each in self._optimizers for p in parameters_of(each)}
        known = (p for p in parameters.values() if not is_lazy(p))
        self._values = [(p, p.detach().clone()) for p in known]
        # Optimisers that share their state or their groups have one copy of it.
        self._states = {
            id(each.state): (each.state, {p: _copied(own) for p, own in each.state.items()})
            for each in self._optimizers
        }
        groups = {id(group): group for each in self._optimizers for group in each.param_groups}
        self._settings = [(group, _copied(_settings(group))) for group in groups.values()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; state that the step has made is gone."""
        for parameter, value in self._values:
            parameter.copy_(value)
        for state, before in self._states.values():
            state.clear()
            state.update(before)
        for group, settings in self._settings:
            for name in group.keys() - settings.keys() - {"params"}:
                del group[name]
            group.update(settings)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _copied(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return deepcopy(values)
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)
        for name, value in values.items()
    }
