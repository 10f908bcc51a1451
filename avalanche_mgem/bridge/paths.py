"""What Avalanche's synaptic intelligence keeps of parameters that come and go while it watches.

It follows all that requires a gradient, and goes by what it saw last of all else.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from avalanche.training.plugins import SynapticIntelligencePlugin
from torch import nn

from avalanche_mgem.bridge.strategy import Strategy


def forget_steps(strategy: Strategy, names: Iterable[str]) -> None:
    """Let synaptic intelligence see no steps of the parameters of these names, which are frozen.

    At every iteration it would count the last gradient times the last step that it has seen of
    them, and divide the sum by the way that they have gone, which is none.
    """
    for plugin in strategy.plugins:
        if isinstance(plugin, SynapticIntelligencePlugin):
            gradients = plugin.syn_data["grad"]
            for name in gradients.keys() & set(names):
                # A new tensor: on a CPU the old one is a parameter's own gradient.
                gradients[name].data = torch.zeros_like(gradients[name].data)


def show_gradients(model: nn.Module, names: Iterable[str]) -> None:
    """Give a gradient of zero to those that train again and have none, as they have not moved.

    It would look for one where they are thawed between a step and what follows it.
    """
    named = dict(model.named_parameters())
    for name in names:
        parameter = named.get(name)
        if parameter is not None and parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
