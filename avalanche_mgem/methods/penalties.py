"""Avalanche's penalties put right: synaptic intelligence and learning without forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.training import plugins
from torch import Tensor, nn

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.strategies import PluginStrategy


class SynapticIntelligencePlugin(plugins.SynapticIntelligencePlugin):
    r"""Synaptic intelligence (arXiv 1703.04200), on Avalanche's plugin.

    To the loss L of an experience it adds si_lambda / 2 * sum_k Omega_k (theta_k - theta*_k)^2,
    with theta* the weights at the end of the experience before. After each experience,

        Omega_k <- max(0, Omega_k + omega_k / ((theta_k - theta*_k)^2 + eps)),
        omega_k = -sum over the steps of dL/dtheta_k times the step of theta_k

    (equations 3 to 5). What is not as in Avalanche:

    - Omega is bounded below at 0, as in the authors' code. The paper's eq. 5 has no bound, but
      where Omega is negative eq. 4 is no penalty. omega is negative where a weight moved up the
      gradient, as momentum and Adam make it.
    - The gradient is that of the experience's own loss L, as in the paper. Avalanche takes that of
      the loss with the penalty, as the plugins behind it have changed it.
    - On the CPU, Avalanche compares the weights with themselves: every difference, and with them
      the penalty, is zero. Here what is kept are copies.

    As in Avalanche (after arXiv 1806.08568), and not in the paper: Omega is cut off at 0.001 in the
    penalty, eps is 1e-7 (the paper has 0.1 and 0.001), and batch normalisation has no penalty.

    Args:
        si_lambda: weight of the penalty, >= 0; or one for each experience, the last for all after.
        eps: damping, > 0.
    """

    def __init__(self, si_lambda: float | Sequence[float], eps: float = 1e-7) -> None:
        super().__init__(si_lambda, eps)
        self._seen: set[str] = set()  # parameters whose gradient of this iteration is known

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Keep the weights of before the experience."""
        super().before_training_exp(strategy, **kwargs)
        _copy_data(self.ewc_data[0])

    def before_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Keep the weights of before the step."""
        super().before_training_iteration(strategy, **kwargs)
        _copy_data(self.syn_data["old_theta"])
        self._seen = set()

    @torch.no_grad()
    def after_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Keep the gradient of the experience's own loss, before other plugins change it."""
        super().after_backward(strategy, **kwargs)
        scale = getattr(strategy, "loss_scale", 1.0)
        penalty = self._penalty_weight(strategy)
        for name, parameter in self._followed(strategy.model):
            if parameter.grad is None:
                continue
            omega, start = self.ewc_data[1][name].data, self.ewc_data[0][name].data
            of_penalty = penalty * omega * (_flat(parameter) - start)
            self.syn_data["grad"][name].data = _flat(parameter.grad) / scale - of_penalty
            self._seen.add(name)

    @torch.no_grad()
    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Add the step to the path integral."""
        for name, parameter in self._followed(strategy.model):
            if name in self._seen:
                step = _flat(parameter) - self.syn_data["old_theta"][name].data
                self.syn_data["trajectory"][name].data += self.syn_data["grad"][name].data * step

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Add to the importances what the experience says of them."""
        super().after_training_exp(strategy, **kwargs)
        for total in self.syn_data["cum_trajectory"].values():
            total.data.clamp_(max=0.0)  # kept with the other sign
        for importance in self.ewc_data[1].values():
            importance.data.clamp_(min=0.0)

    def _followed(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        followed: list[tuple[str, Tensor]]
        followed = self.allowed_parameters(model, self.excluded_parameters)
        return followed

    def _penalty_weight(self, strategy: Strategy) -> float:
        index = min(strategy.clock.train_exp_counter, len(self.si_lambda) - 1)
        return float(self.si_lambda[index])


class SynapticIntelligence(PluginStrategy):
    """Plain training with `SynapticIntelligencePlugin`, for its arguments."""

    PLUGIN = SynapticIntelligencePlugin


class LwFPlugin(plugins.LwFPlugin):
    """Learning without forgetting (arXiv 1606.09282), on Avalanche's plugin.

    The loss gets alpha times the Kullback-Leibler divergence of the outputs from those of the
    teacher, the model as it was after the experience before, over the classes that it had seen.
    Avalanche leaves the teacher in training mode: its dropout is drawn anew for every minibatch,
    and its batch normalisation normalises by the minibatch and goes on adapting its statistics to
    the new task. Here it is in evaluation mode, as when its outputs were last those of a finished
    model. A model without dropout and batch normalisation trains as with Avalanche's, to the bit.

    Args:
        alpha: weight of the divergence, >= 0; or one for each experience.
        temperature: of both softmaxes, > 0.
    """

    def __init__(self, alpha: float | Sequence[float] = 1.0, temperature: float = 2.0) -> None:
        super().__init__(alpha, temperature)

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Copy the model, as the next experience's teacher."""
        super().after_training_exp(strategy, **kwargs)
        self.lwf.prev_model.eval()


class LwF(PluginStrategy):
    """Plain training with `LwFPlugin`, for its arguments."""

    PLUGIN = LwFPlugin


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten()


def _copy_data(kept: Mapping[str, Any]) -> None:
    for weights in kept.values():
        weights.data = weights.data.clone()
