"""What of Avalanche does not go together with a plugin of this package, told before training."""

from __future__ import annotations

from collections.abc import Iterator

from avalanche.models.packnet import PackNetModule
from avalanche.training.plugins import AGEMPlugin, CWRStarPlugin, GEMPlugin

from avalanche_mgem.bridge.strategy import Strategy


def refusal(plugin: object, other: object, reason: str) -> ValueError:
    """Return the error that `plugin` does not go together with `other`."""
    names = type(plugin).__name__, type(other).__name__
    return ValueError(f"{names[0]} does not go together with {names[1]}: {names[0]} {reason}")


def refuse_beside_packnet(strategy: Strategy, plugin: object, reason: str) -> None:
    """Raise ValueError for a model of PackNet's, whose every weight belongs to one task.

    Named is PackNetPlugin, or the model where the strategy has none.
    """
    if any(isinstance(module, PackNetModule) for module in strategy.model.modules()):
        own = [each for each in strategy.plugins if type(each).__name__ == "PackNetPlugin"]
        raise refusal(plugin, own[0] if own else strategy.model, reason)


def refuse_beside_cwr(strategy: Strategy, plugin: object, reason: str) -> None:
    """Raise ValueError for CWR* that freezes all but the last layer after the first experience."""
    for other in strategy.plugins:
        if isinstance(other, CWRStarPlugin) and other.freeze_remaining_model:
            raise refusal(plugin, other, f"{reason}, and CWR* freezes all others after the first")


def refuse_before_projections(strategy: Strategy, plugin: object, instead: str) -> None:
    """Raise ValueError where Avalanche's GEM or A-GEM projects what `plugin` has projected.

    instead: what of the plugin's arguments would do.
    """
    for other in _behind(strategy, plugin):
        if isinstance(other, GEMPlugin | AGEMPlugin):
            raise refusal(
                plugin,
                other,
                "projects the gradient, and what is behind it projects that again, out of its "
                f"cone: put it behind {type(other).__name__}, or use {instead}",
            )


def refuse_before_scaling(strategy: Strategy, plugin: object) -> None:
    """Raise ValueError where `plugin` scales steps that a plugin before it has restricted."""
    for other in strategy.plugins:
        if other is plugin:
            return
        if getattr(other, "restrict", None) == "update":
            raise refusal(
                plugin,
                other,
                f"scales the steps that {type(other).__name__} (restrict='update') has restricted, "
                "out of its cone: put it before that",
            )


def _behind(strategy: Strategy, plugin: object) -> Iterator[object]:
    """Yield the plugins that hear of an event after `plugin`."""
    seen = False
    for other in strategy.plugins:
        if seen:
            yield other
        seen = seen or other is plugin
