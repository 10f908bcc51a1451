"""Training in half precision: autocast, and for float16 a scaled loss.

strategy = with_mixed_precision(Naive)(model=model, optimizer=optimizer, precision="bf16")
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from torch import Tensor
from torch.optim import Optimizer

from avalanche_mgem.arguments import bounded_int, finite, one_of
from avalanche_mgem.bridge.finite import all_finite
from avalanche_mgem.bridge.wrapping import StrategyWrapper, wrapped

Precision = Literal["bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_HALVES = (torch.bfloat16, torch.float16)
# Far below any scale that a gradient in float16 asks for.
_LEAST_SCALE = 2.0**-13


class MixedPrecision(StrategyWrapper):
    """Makes an Avalanche strategy run its model in half precision, on parameters in float32.

    Put before a strategy's class, `class MyReplay(MixedPrecision, Replay): pass`, or use
    `with_mixed_precision(Replay)`, which is the same. The forward pass and the criterion run under
    torch's autocast, in training and in evaluation. Parameters, gradients and the optimiser's state
    stay in float32, and so are outputs (tensors) for whoever reads mb_output.

    With "fp16" the loss is multiplied by a scale for the backward pass, so that small gradients are
    not lost (torch.amp.GradScaler). The gradients are divided by it before the event
    `after_backward`: what plugins project, mask and clip, and all that metrics see, is not scaled.
    A step whose gradients are infinite or NaN is left out, and the scale is halved; plugins see the
    events of such an iteration all the same. `handles_nonfinite` says so to them; what becomes NaN
    later, by a plugin, is not of its kind.

    The gradients that are measured besides, those of mGEM's memory and the probes of the hybrid
    strategy, have no scaled loss. In bfloat16 none is needed, it has the range of float32; in
    float16 small ones would be lost, so it is not to be had for them. What plugins compute by the
    model itself, such as LwF's teacher, is in the model's own precision.

    Args:
        precision: "bf16" or "fp16".
        memory_precision: of those passes, "bf16" or "fp32". None: "bf16" beside "bf16", "fp32"
            beside "fp16". "fp32" is what `memory_passes="grouped"` of MGEMPlugin asks for.
        init_scale: with "fp16", the scale at the start.
        growth_interval: with "fp16", after so many steps without overflow the scale is doubled.

    Attributes:
        loss_scale: the present scale; 1 with "bf16".
        skipped_steps: how many steps were left out.
        handles_nonfinite: whether the last backward pass has overflown: its step is left out here.

    The scale and the counts are part of a pickle and of a checkpoint.

    Raises:
        ValueError: an argument out of range, at construction; with "fp16", a strategy with an
            `optimizer_step` of its own (a scaled step takes no closure), and a trainable parameter
            in float16, before the first iteration.
        TypeError: the strategy has a training loop of its own.
        FloatingPointError: gradients are not finite at any scale.
    """

    def __init__(
        self,
        *,
        precision: Precision = "bf16",
        memory_precision: Literal["bf16", "fp32"] | None = None,
        init_scale: float = 2.0**16,
        growth_interval: int = 2000,
        **options: Any,
    ) -> None:
        one_of("precision", precision, ("bf16", "fp16"))
        if memory_precision is not None:
            one_of("memory_precision", memory_precision, ("bf16", "fp32"))
        init_scale = finite("init_scale", init_scale, minimum=0.0, above=True)
        growth_interval = bounded_int("growth_interval", growth_interval)
        if precision == "fp16":
            _require_plain_step(type(self))
        super().__init__(**options)
        self.precision = precision
        self.memory_precision = memory_precision or ("bf16" if precision == "bf16" else "fp32")
        self.skipped_steps = 0
        self._forward_precision: str = precision  # of the last forward pass, and so its loss
        self._overflows = False  # the last backward pass
        self._scaler: _LossScale | None = None
        if precision == "fp16":
            device: torch.device = self.device  # type: ignore[attr-defined]
            self._scaler = _LossScale(device.type, init_scale, growth_interval)

    @property
    def handles_nonfinite(self) -> bool:
        """Whether the last backward pass has overflown, and so its step is left out."""
        return self._overflows

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by for the backward pass."""
        return 1.0 if self._scaler is None else self._scaler.value

    def _before_training(self: Any, **kwargs: Any) -> None:
        if self._scaler is not None:
            self._scaler.restart()  # after a training that an error has interrupted
        super()._before_training(**kwargs)

    def _before_training_exp(self: Any, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        for name, parameter in self.model.named_parameters():
            half = parameter.requires_grad and parameter.dtype == torch.float16
            if half and self._scaler is not None:
                raise ValueError(
                    f"precision='fp16' trains parameters in float32, got {name!r} in float16: "
                    "load the model in float32"
                )

    def _autocast(self: Any, precision: str) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=_half(_DTYPES[precision]), enabled=precision != "fp32"
        )

    def _forward(self: Any, own: bool) -> Any:
        measures = self.is_training and not own
        self._forward_precision = self.memory_precision if measures else self.precision
        with self._autocast(self._forward_precision):
            output = super()._forward(own)
        # A subclass may hold more than its own numbers, and knows what to do with them.
        is_half = type(output) is Tensor and output.dtype in _HALVES
        return output.float() if is_half else output

    def criterion(self: Any) -> Tensor:
        """Compute the loss, in the precision of the forward pass before it."""
        with self._autocast(self._forward_precision):
            loss: Tensor = super().criterion()
        return loss

    def backward(self: Any) -> None:
        """Run the backward pass of the scaled loss."""
        if self._scaler is None:
            super().backward()
            return
        loss, self.loss = self.loss, self._scaler.scaled(self.loss)
        try:
            super().backward()
        finally:
            self.loss = loss

    def _after_backward(self: Any, **kwargs: Any) -> None:
        if self._scaler is not None:
            self._scaler.unscale(self.optimizer)
            groups = self.optimizer.param_groups
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            self._overflows = not all_finite(gradients)
        super()._after_backward(**kwargs)

    def optimizer_step(self: Any) -> None:
        """Step, unless a gradient is infinite or NaN (precision="fp16")."""
        if self._scaler is None:
            super().optimizer_step()
        elif not self._scaler.step(self.optimizer):
            self.skipped_steps += 1
            if self._scaler.value < _LEAST_SCALE:
                raise FloatingPointError(
                    f"gradients are not finite at any scale of the loss, in experience "
                    f"{self.clock.train_exp_counter}, iteration "
                    f"{self.clock.train_exp_iterations}: the loss is {float(self.loss.detach())}"
                )


def with_mixed_precision(strategy: type[Any]) -> Any:
    """Return an Avalanche strategy's class that trains in half precision; see `MixedPrecision`.

    Raises:
        ValueError: `strategy` is no class of a supervised strategy.
        TypeError: it has a training loop of its own.
    """
    return wrapped(MixedPrecision, strategy)


def _require_plain_step(strategy: type[Any]) -> None:
    """Raise ValueError for a strategy that steps in a way of its own, which would not be called."""
    behind: Any = super(MixedPrecision, strategy)
    if behind.optimizer_step is not BaseSGDTemplate.optimizer_step:
        raise ValueError(
            f"precision='fp16' steps by a gradient scaler, and would not call the optimizer_step "
            f"of {strategy.__name__}: take precision='bf16'"
        )


def _half(dtype: torch.dtype) -> torch.dtype:
    """Autocast that is off wants a dtype too, and not float32."""
    return dtype if dtype in _HALVES else torch.bfloat16


class _LossScale:
    """torch's gradient scaler for one optimiser; it can be pickled and begun anew at any time."""

    def __init__(self, device: str, init_scale: float, growth_interval: int) -> None:
        self._device = device
        self._scaler = torch.amp.GradScaler(
            device, init_scale=init_scale, growth_interval=growth_interval
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_device": self._device, "_scaler": self._scaler.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._device = state["_device"]
        self._scaler = torch.amp.GradScaler(self._device)
        self._scaler.load_state_dict(state["_scaler"])

    @property
    def value(self) -> float:
        return float(self._scaler.get_scale())

    def restart(self) -> None:
        """Forget an iteration that was not finished."""
        self.__setstate__(self.__getstate__())

    def scaled(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Step if all gradients are finite; return whether they are."""
        before = self.value
        self._scaler.step(optimizer)
        self._scaler.update()
        return self.value >= before
