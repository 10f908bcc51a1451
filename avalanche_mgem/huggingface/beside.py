"""What of Avalanche does not go together with adapters, and with a new one for each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.training.plugins import (
    CWRStarPlugin,
    EWCPlugin,
    FromScratchTrainingPlugin,
    GDumbPlugin,
    RARPlugin,
)
from avalanche.training.supervised.icarl import _ICaRLPlugin

from avalanche_mgem.bridge.beside import refusal, refuse_beside_packnet
from avalanche_mgem.bridge.frozen import refuse_beside_frozen
from avalanche_mgem.bridge.strategy import Strategy

Applies = Callable[[Any], bool]

_ONE_ADAPTER = "; LoRAPlugin has one adapter for all"
# What keeps or copies parameters by name, and does not expect more of them in between.
_BESIDE_NEW_ONES: tuple[tuple[type, Applies | None, str], ...] = (
    (
        EWCPlugin,
        lambda ewc: ewc.mode == "online",
        "adds parameters with each task, and EWC in the mode 'online' compares the importances of "
        "two tasks one by one; the mode 'separate' does not",
    ),
    (
        CWRStarPlugin,
        lambda cwr: cwr.freeze_remaining_model,
        "has a new adapter for each task, and CWR* freezes all but the last layer after the first"
        + _ONE_ADAPTER,
    ),
    (
        FromScratchTrainingPlugin,
        None,
        "keeps the adapters of earlier tasks, and training from scratch puts them back to where "
        "they began" + _ONE_ADAPTER,
    ),
    (
        GDumbPlugin,
        None,
        "keeps the adapters of earlier tasks, and GDumb begins each task with the first model"
        + _ONE_ADAPTER,
    ),
    (
        _ICaRLPlugin,
        None,
        "adds parameters with each task, and iCaRL copies its model into one that has those of the "
        "first task" + _ONE_ADAPTER,
    ),
)


def refuse_beside_adapters(strategy: Strategy, plugin: object, *, one_each_task: bool) -> None:
    """Refuse plugins of Avalanche that do not go together with adapters in the model.

    Args:
        strategy: that trains.
        plugin: that puts adapters into its model.
        one_each_task: whether it adds one with each task.

    Raises:
        ValueError: one that does not, by name and with the reason.
    """
    refuse_beside_frozen(strategy, plugin)
    refuse_beside_packnet(
        strategy, plugin, "puts adapters on layers that PackNet multiplies by around their own call"
    )
    for other in strategy.plugins:
        if isinstance(other, RARPlugin):
            raise refusal(plugin, other, "puts layers into the model that torch.fx cannot trace")
        for kind, applies, reason in _BESIDE_NEW_ONES if one_each_task else ():
            if isinstance(other, kind) and (applies is None or applies(other)):
                raise refusal(plugin, other, reason)
