"""Clipping of gradients after all that restricts them, as a plugin."""

from __future__ import annotations

import math
import weakref
from typing import Any

from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from avalanche_mgem.arguments import finite, flag
from avalanche_mgem.bridge.nonfinite import place
from avalanche_mgem.bridge.strategy import Strategy


class ClipGradientPlugin(SupervisedPlugin):
    """Scale gradients down to a norm, after all other plugins have done with them.

    The norm is that of the gradient which the optimiser sees, all parameters that it has in one
    vector: after mGEM's projection, after MIGU's mask (what is masked counts for nothing) and, in
    mixed precision, unscaled. Where it is above `max_norm`, the whole gradient is multiplied by one
    number, so that it stays in mGEM's cone. Runs at the very start of the optimiser's step, by a
    hook that is there from `before_update` to `after_update`: any order with other plugins will
    do, and a step that is left out clips nothing. With several processes each clips by itself;
    where their gradients have been averaged that is the same everywhere.

    Under restrict="update" of MGEMPlugin the projection comes after the step: what is clipped is
    the gradient that the optimiser makes its update of, not the update.

    Args:
        max_norm: > 0.
        norm_type: of the norm, > 0; math.inf is the largest magnitude.
        error_if_nonfinite: whether a norm that is infinite or NaN is an error; if not, the gradient
            is scaled by it, which makes infinite ones NaN. It is never one where the strategy
            leaves such steps out, as MixedPrecision does with float16.

    Attributes:
        last_norm: before clipping, of the last iteration; None where no step was taken.

    Raises:
        ValueError: an argument out of range, at construction.
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
        self._hook: RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_hook": None}

    @property
    def last_norm(self) -> float | None:
        """The norm before clipping of the last iteration's gradient."""
        return None if self._norm is None else float(self._norm)

    def before_training(self, strategy: Strategy, **kwargs: Any) -> None:
        """Take off the hook that an interrupted training has left."""
        self.release_hooks()

    def before_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Clip as soon as the optimiser's step begins."""
        self.release_hooks()
        self._norm = None
        known = weakref.ref(strategy)  # a hook that an error has left keeps nothing alive

        def clip(optimizer: Optimizer, *_: Any) -> None:
            strategy = known()
            if strategy is not None and optimizer is strategy.optimizer:
                self._clip(strategy)

        # A hook of all optimisers: those come before an optimiser's own, and one of these may take
        # the gradients to step the rows that MIGU keeps.
        self._hook = register_optimizer_step_pre_hook(clip)

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Take the hook off."""
        self.release_hooks()

    def release_hooks(self) -> None:
        """Take off what a step that an error has ended has left."""
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.remove()

    def _clip(self, strategy: Strategy) -> None:
        parameters = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        if all(p.grad is None for p in parameters):
            return  # the step is left out
        norm = clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        self._norm = norm
        leaves_out = getattr(strategy, "handles_nonfinite", False)
        if self.error_if_nonfinite and not leaves_out and not math.isfinite(float(norm)):
            self.release_hooks()
            raise FloatingPointError(f"the gradient's norm is {float(norm)}, in {place(strategy)}")
