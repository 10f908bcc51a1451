"""Whether a run has become NaN or Inf: such a run has no accuracy, though one could be counted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from avalanche.evaluation import PluginMetric
from torch import Tensor
from torch.nn.parameter import is_lazy

from avalanche_mgem.bridge.finite import all_finite
from avalanche_mgem.bridge.nonfinite import place
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.distributed import unwrapped

_PERIOD = 100  # iterations between two looks at the loss: an accelerator is waited for at each


class Divergence(PluginMetric):
    """Ends a training whose loss or weights are NaN or Inf, by an error.

        divergence.start(strategy)
        try:
            strategy.train(experience)  # with this metric in its evaluator
        except Exception as error:
            if not divergence.explains(error, strategy):
                raise

    Looked at are the loss, and with it every penalty in it, of each training iteration; parameters
    and floating-point buffers after each experience, but for those that were not finite before it,
    such as a mask of -Inf; and whether an output in the evaluation is NaN, but for evaluations in
    the middle of an experience, so that a run ends the same with and without them. Where a plugin
    skips the steps whose loss is not finite (on_nonfinite="skip"), the loss says nothing.

    Attributes:
        found: whether the run has diverged.

    Raises:
        FloatingPointError: within `strategy.train`, the loss or the weights are NaN or Inf.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.found = False
        self._training = False
        self._never_finite: frozenset[str] = frozenset()
        self._finite_loss: Tensor | None = None  # on the device; None: no loss since the last look

    def result(self) -> bool:
        """Return whether the run has diverged."""
        return self.found

    def explains(self, error: Exception, strategy: Strategy) -> bool:
        """Return whether an error that ended a training comes of NaN or Inf; if so, note it.

        So does every FloatingPointError, such as those of our plugins, and any error beside a loss
        or weights that are not finite: what fails on them differs by method.
        """
        if isinstance(error, FloatingPointError) or not self._is_finite(strategy):
            self.found = True
        return self.found

    def start(self, strategy: Strategy) -> None:
        """Begin an experience: note what is not finite by intention. `strategy.train` follows."""
        values = _values(strategy.model)
        self._never_finite = frozenset(name for name, value in values if not all_finite([value]))
        self._finite_loss = None
        self.found = False  # whatever was evaluated before had not been trained
        self._training = False

    def before_training(self, strategy: Strategy) -> None:
        """Note that an evaluation from now on is in the middle of a training."""
        self._training = True

    def after_training(self, strategy: Strategy) -> None:
        """Note that the training is over."""
        self._training = False

    def after_training_iteration(self, strategy: Strategy) -> None:
        """Note the loss."""
        loss = strategy.loss
        if isinstance(loss, Tensor) and not _skips_steps(strategy):
            finite = loss.detach().isfinite().all()
            self._finite_loss = finite if self._finite_loss is None else self._finite_loss & finite
        if (strategy.clock.train_exp_iterations + 1) % _PERIOD == 0:
            self._look_at_loss(strategy)

    def after_training_epoch(self, strategy: Strategy) -> None:
        """Look at the losses since the last look."""
        self._look_at_loss(strategy)

    def after_training_exp(self, strategy: Strategy) -> None:
        """Look at the weights."""
        if not all_finite(self._weights(strategy)):
            raise FloatingPointError(f"the weights are NaN or Inf after {place(strategy)}")

    def after_eval_iteration(self, strategy: Strategy) -> None:
        """Look at the outputs: finite weights may be so large that they are NaN."""
        output = strategy.mb_output
        if not self._training and isinstance(output, Tensor) and bool(output.isnan().any()):
            self.found = True

    def _look_at_loss(self, strategy: Strategy) -> None:
        if self._finite_loss is not None and not bool(self._finite_loss):
            raise FloatingPointError(f"the loss is NaN or Inf, up to {place(strategy)}")
        self._finite_loss = None

    def _is_finite(self, strategy: Strategy) -> bool:
        loss = getattr(strategy, "loss", None)
        losses = [loss.detach()] if isinstance(loss, Tensor) and not _skips_steps(strategy) else []
        return all_finite([*losses, *self._weights(strategy)])

    def _weights(self, strategy: Strategy) -> list[Tensor]:
        return [v for name, v in _values(strategy.model) if name not in self._never_finite]

    def __str__(self) -> str:
        return "Divergence"


def _values(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, but for integers and what has no values yet."""
    whole = unwrapped(model)
    for name, value in (*whole.named_parameters(), *whole.named_buffers()):
        if not is_lazy(value) and (value.is_floating_point() or value.is_complex()):
            yield name, value.detach()


def _skips_steps(strategy: Strategy) -> bool:
    return any(getattr(plugin, "on_nonfinite", None) == "skip" for plugin in strategy.plugins)
