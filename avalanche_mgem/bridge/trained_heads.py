"""Which output heads have trained, so that a task's new one is known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from avalanche_mgem.bridge.boundaries import Boundary
from avalanche_mgem.bridge.probe_head import Size, grows, has_new_head
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.distributed import first_of_all, unwrapped


def require_head_epochs(strategy: Strategy, head_epochs: int, boundary: Boundary) -> None:
    """Raise ValueError where so many epochs cannot be at the start of a task, with some to follow.

    Args:
        strategy: at the start of an experience.
        head_epochs: as the user has it, > 0.
        boundary: what the experience tells.
    """
    if not boundary.known:
        raise ValueError(
            f"head_epochs={head_epochs} are epochs at the start of a task, and this stream has no "
            "task boundaries: take head_epochs=0"
        )
    if head_epochs >= strategy.train_epochs:
        raise ValueError(
            f"head_epochs={head_epochs} must be fewer than the epochs of training, got "
            f"train_epochs={strategy.train_epochs}"
        )


class TrainedHeads:
    """The parameters of heads that tasks have trained, by name and shape.

    A head that has grown is another one, and so is one of Avalanche's that grow where the task has
    new classes: it may have had room for them. What a task trains counts when it has ended, so that
    a task that is interrupted and trained again has a new head again.
    """

    def __init__(self) -> None:
        self._trained: dict[str, Size] = {}  # in tasks that have ended
        self._now: dict[str, Size] = {}
        self._classes: set[int] = set()  # of tasks that have ended
        self._classes_now: set[int] = set()

    def note(self, model: nn.Module, heads: Sequence[str]) -> None:
        """Note which parameters of these heads have a gradient in this step."""
        for head in heads:
            for name, parameter in model.get_submodule(head).named_parameters(prefix=head):
                if parameter.grad is not None:
                    self._now[name] = parameter.shape

    def end_task(self) -> None:
        """Let what has been noted count."""
        self._trained |= self._now
        self._classes |= self._classes_now
        self._now, self._classes_now = {}, set()

    def has_new(self, strategy: Strategy, heads: Sequence[str]) -> bool:
        """Whether the task at hand has a new head and is not the first; the same in all processes.

        Args:
            strategy: at the start of the task.
            heads: the names of the output heads.
        """
        self._classes_now = set(getattr(strategy.experience, "classes_in_this_experience", ()))
        if not self._trained:
            return False
        model, new_classes = unwrapped(strategy.model), self._classes_now - self._classes
        has_room = bool(new_classes) and grows(model, heads)
        return first_of_all(has_room or has_new_head(strategy, heads, self._trained))
