"""Clipping of gradients after all that restricts them, as a plugin."""

from __future__ import annotations

import math
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from avalanche_mgem.arguments import finite, flag
from avalanche_mgem.bridge.loop import LoopWatch
from avalanche_mgem.bridge.nonfinite import place
from avalanche_mgem.bridge.optimizers import require_optimizer, stepped_parameters
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.watch import Action, Order, StepWatch


class ClipGradientPlugin(SupervisedPlugin):
    """Scale gradients down to a norm, after all other plugins have done with them.

    The norm is that of the gradient which the optimiser sees, all parameters that it has in one
    vector: after mGEM's projection, after MIGU's mask (what is masked counts for nothing) and, in
    mixed precision, unscaled. Where it is above `max_norm`, the whole gradient is multiplied by one
    number, so that it stays in mGEM's cone. Runs at the very start of the optimiser's step, by a
    hook that is there from `before_update` to `after_update`: any order with other plugins will
    do, and a step that is left out clips nothing. Gradients that a step makes itself are clipped
    too, by a closure (LBFGS) or by running the model again (SAM). With several processes each clips
    by itself; where their gradients have been averaged that is the same everywhere.

    Under restrict="update" of MGEMPlugin the projection comes after the step: what is clipped is
    the gradient that the optimiser makes its update of, not the update.

    Args:
        max_norm: > 0.
        norm_type: of the norm, > 0; math.inf is the largest magnitude.
        error_if_nonfinite: whether a norm that is infinite or NaN is an error; if not, the gradient
            is scaled by it, which makes infinite ones NaN. It is never one where the strategy
            leaves such steps out, as MixedPrecision does with float16.

    Attributes:
        last_norm: before clipping, of the last gradient of the last iteration; None where no step
            was taken.

    Raises:
        ValueError: an argument out of range, at construction; a strategy without an optimiser, or
            of Avalanche's meta-learning.
        RuntimeError: the optimiser does not call torch's hooks, or the training loop not this
            plugin, after the first step.
        FloatingPointError: the norm is infinite or NaN, which that of finite gradients beyond 1e19
            is too; no parameter has moved then.
    """

    def __init__(
        self, max_norm: float, *, norm_type: float = 2.0, error_if_nonfinite: bool = True
    ) -> None:
        super().__init__()
        self.max_norm = finite("max_norm", max_norm, minimum=0.0, above=True)
        if isinstance(norm_type, float) and norm_type == math.inf:
            self.norm_type = math.inf
        else:
            self.norm_type = finite("norm_type", norm_type, minimum=0.0, above=True)
        self.error_if_nonfinite = flag("error_if_nonfinite", error_if_nonfinite)
        self._norm: Tensor | None = None
        self._watch, self._loop = StepWatch(), LoopWatch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Of a checkpoint that is older.
        self.__dict__.update({"_watch": StepWatch(), "_loop": LoopWatch(), **state})

    @property
    def last_norm(self) -> float | None:
        """The norm before clipping of the last gradient of the last iteration."""
        return None if self._norm is None else float(self._norm)

    def before_training(self, strategy: Strategy, **kwargs: Any) -> None:
        """Take off the hook that an interrupted training has left."""
        require_optimizer(strategy, "ClipGradientPlugin")
        self.release_hooks()

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Refuse training loops that never call this."""
        self._loop.start(strategy, self, events=("before_update", "after_update"))

    def before_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Clip as soon as the optimiser's step begins."""
        self._loop.saw("before_update")
        self._norm = None
        self._watch.open(strategy, Action(Order.CLIP, self._act, is_due=True))

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Take the hook off."""
        self._loop.saw("after_update")
        self._watch.close()

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """See to it that the training loop has called what this acts on."""
        self._loop.end(strategy, self.release_hooks)

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """See to that again, for a loop that calls nothing at all."""
        self._loop.end(strategy, self.release_hooks)

    def release_hooks(self) -> None:
        """Take off what a step that an error has ended has left."""
        self._watch.release()

    def _act(self, strategy: Strategy, loss: Any) -> None:
        self._clip(strategy)

    def _clip(self, strategy: Strategy) -> None:
        parameters = list(stepped_parameters(strategy))
        if all(p.grad is None for p in parameters):
            return  # the step is left out
        norm = clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        self._norm = norm
        leaves_out = getattr(strategy, "handles_nonfinite", False)
        if self.error_if_nonfinite and not leaves_out and not math.isfinite(float(norm)):
            self.release_hooks()
            raise FloatingPointError(f"the gradient's norm is {float(norm)}, in {place(strategy)}")
