"""What this package reads of an Avalanche strategy, for type checkers.

Avalanche ships no types: its strategies are Any, and satisfy these. Nothing here is checked at run
time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn


class Clock(Protocol):
    """Avalanche's count of what has been trained."""

    @property
    def train_iterations(self) -> int:
        """Iterations so far, over all experiences."""

    @property
    def train_epoch_iterations(self) -> int:
        """Iterations of this epoch."""

    @property
    def train_exp_counter(self) -> int:
        """Experiences trained so far; of an online stream, sub-experiences."""

    @property
    def train_exp_iterations(self) -> int:
        """Iterations of this experience."""


class Strategy(Protocol):
    """A supervised strategy, as plugins and metrics of this package read it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    plugins: list[Any]
    evaluator: Any
    experience: Any
    adapted_dataset: Any
    current_eval_stream: Any
    dataloader: Any
    train_mb_size: int
    train_epochs: int
    clock: Clock
    mbatch: Any
    mb_output: Any
    loss: Tensor
    is_training: bool
    _stop_training: bool

    @property
    def mb_x(self) -> Any:
        """The current minibatch's inputs."""

    @property
    def mb_y(self) -> Any:
        """The current minibatch's targets."""

    def _unpack_minibatch(self) -> None:
        """Move the current minibatch to the device."""

    def _before_forward(self) -> None:
        """Let plugins and the strategy's class act before the forward pass."""

    def forward(self) -> Any:
        """Return the model's output for the current minibatch."""

    def _after_forward(self) -> None:
        """Let plugins and the strategy's class act after it."""

    def criterion(self) -> Any:
        """Return the loss of the current minibatch, a scalar tensor."""

    def train(self, experiences: Any, /, **kwargs: Any) -> Any:
        """Train on an experience or a stream."""

    def eval(self, experiences: Any, /, **kwargs: Any) -> Any:
        """Evaluate on an experience or a stream; return the last values of all metrics."""


if TYPE_CHECKING:

    class StrategyBase:  # its methods are Avalanche's
        """What a mixin of strategies calls of the strategy behind it in the method resolution."""

        def __init__(self, **options: Any) -> None: ...
        def _before_training(self, **kwargs: Any) -> None: ...
        def _before_training_exp(self, **kwargs: Any) -> None: ...
        def _before_forward(self, **kwargs: Any) -> None: ...
        def _after_forward(self, **kwargs: Any) -> None: ...
        def _after_backward(self, **kwargs: Any) -> None: ...
        def _train_cleanup(self) -> None: ...
        def _unpack_minibatch(self) -> None: ...
        def forward(self) -> Any: ...  # noqa: D102
        def criterion(self) -> Tensor: ...  # noqa: D102
        def backward(self) -> None: ...  # noqa: D102
        def optimizer_step(self) -> None: ...  # noqa: D102
else:
    StrategyBase = object
