"""Ready-made strategies: Avalanche's template with one of our plugins in it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from avalanche_mgem.lazy import option_names
from avalanche_mgem.plugins import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin


def _joined_signature(plugin: type[Any]) -> inspect.Signature:
    template = list(inspect.signature(SupervisedTemplate.__init__).parameters.values())
    self_, *rest = [p for p in template if p.kind is not p.VAR_KEYWORD]
    own = inspect.signature(plugin).parameters.values()
    joined = [p.replace(kind=p.KEYWORD_ONLY) for p in [*rest, *own]]
    return inspect.Signature([self_, *joined])


class PluginStrategy(SupervisedTemplate):
    """A SupervisedTemplate whose keyword arguments are its own and those of one plugin.

        class MGEM(PluginStrategy):
            PLUGIN = MGEMPlugin

    Arguments by position are taken as Avalanche's strategies take them: in the template's order
    (model, optimizer, criterion), with a warning.
    """

    PLUGIN: type[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "PLUGIN" not in cls.__dict__:
            super().__init_subclass__(**kwargs)
            return

        # Avalanche refuses keyword arguments that the signature of __init__ does not name; so name
        # them, instead of copying them.
        def __init__(  # noqa: N807
            self: Any,
            *,
            model: nn.Module,
            optimizer: Optimizer,
            plugins: Sequence[SupervisedPlugin] = (),
            **options: Any,
        ) -> None:
            names = option_names(cls.PLUGIN)
            own = {name: options.pop(name) for name in list(options) if name in names}
            added = [cls.PLUGIN(**own), *(plugins or ())]
            SupervisedTemplate.__init__(
                self, model=model, optimizer=optimizer, plugins=added, **options
            )

        # Before Avalanche wraps it: its wrapper names by it what comes by position.
        __init__.__signature__ = _joined_signature(cls.PLUGIN)  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[assignment,method-assign]
        super().__init_subclass__(**kwargs)


class MGEM(PluginStrategy):
    """Fine-grained gradient episodic memory; see MGEMPlugin for its arguments and its source.

    All arguments are keyword arguments: those of Avalanche's SupervisedTemplate (model, optimizer,
    criterion, train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator, eval_every,
    peval_mode) and those of MGEMPlugin. Further plugins run after ours.

    Raises:
        TypeError: an unknown argument.
        ValueError: what MGEMPlugin raises.
    """

    PLUGIN = MGEMPlugin


class MIGU(PluginStrategy):
    """Magnitude-based gradient updating; see MIGUPlugin for its arguments and its source.

    All arguments are keyword arguments, as those of `MGEM`.

    Raises:
        TypeError: an unknown argument.
        ValueError: what MIGUPlugin raises.
    """

    PLUGIN = MIGUPlugin


class HybridMagnitude(PluginStrategy):
    """The hybrid magnitude strategy; see HybridMagnitudePlugin for its arguments and its source.

    All arguments are keyword arguments, as those of `MGEM`.

    Raises:
        TypeError: an unknown argument.
        ValueError: what HybridMagnitudePlugin raises.
    """

    PLUGIN = HybridMagnitudePlugin
