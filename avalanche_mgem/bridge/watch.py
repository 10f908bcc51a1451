"""Gradients that a step makes itself, restricted as the one before it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from avalanche_mgem.bridge.optimizers import optimizers_of, stepped_parameters
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.model.optimizers import (
    calls_hooks,
    holds_any,
    optimizers_within,
    stepping_optimizer,
)


class Order(IntEnum):
    """What is done to a gradient, from first to last."""

    CHECK = 0
    PROJECT = 1
    MASK = 2
    CLIP = 3


@dataclass
class Action:
    """What a plugin does to the gradients before a step.

    Attributes:
        order: among the actions of all plugins.
        act: is called with the strategy and with the loss of a closure, else None. It returns False
            where the step is to change nothing; a search must not see that loss then.
        prepare: is called with the strategy before a step that has a closure.
        argument: of the plugin, that would do without this action, as text for an error.
        late: whether to act after a step that could not be watched, which is an error else.
        is_due: whether it has not acted on the present gradients.
    """

    order: Order
    act: Callable[[Strategy, Any], bool | None]
    prepare: Callable[[Strategy], None] | None = None
    argument: str = ""
    late: bool = False
    is_due: bool = False


class StepWatch:
    """Lets a plugin act on every gradient that a step moves the parameters by.

        watch.open(strategy, Action(Order.MASK, act))     # before the optimiser's step
        watch.close()                                     # after it

    A step makes gradients itself where it is given a closure, as LBFGS is, and where the strategy
    runs the model again between two parts of a step, as for SAM. The actions follow each backward
    pass of these kinds before an optimiser moves by it, those of all plugins of the strategy in
    their order. They follow no other, as the plugin has acted on the gradients that are there when
    the watch opens; but one that is due acts once as soon as a step begins.

    What is watched are torch's hooks of optimisers and two parameters' gradients.
    """

    def __init__(self) -> None:
        self._window: _Window | None = None
        self._actions: list[Action] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_window": None, "_actions": []}

    def open(self, strategy: Strategy, *actions: Action) -> None:
        """Watch the step that comes, together with the strategy's other plugins."""
        self.release()
        self._window = _WINDOWS.get(strategy)
        if self._window is None:
            self._window = _WINDOWS[strategy] = _Window(strategy)
        self._actions = list(actions)
        self._window.actions = sorted([*self._window.actions, *actions], key=lambda a: a.order)

    def acted(self) -> None:
        """Say that the plugin has acted on the present gradients of itself."""
        for action in self._actions:
            action.is_due = False

    def close(self) -> None:
        """End the step.

        Raises:
            RuntimeError: the step has made gradients anew and moved by them, and nothing of it
                could be seen.
        """
        window = self._window
        self.release()
        if window is not None:
            window.close()

    def release(self) -> None:
        """Take off the hooks that an error has left."""
        window, self._window = self._window, None
        if window is not None:
            window.release()


class _Window:
    """One step of a strategy, that all plugins share. What an error leaves keeps no model alive."""

    def __init__(self, strategy: Strategy) -> None:
        self.actions: list[Action] = []
        self._strategy = weakref.ref(strategy)
        self._remade = self._stepped = False
        parameters = list(stepped_parameters(strategy))
        self._ids = {id(parameter) for parameter in parameters}
        note = _weak(self._note)
        self._hooks: list[RemovableHandle] = [
            register_optimizer_step_pre_hook(_weak(self._before_step)),
            *(p.register_post_accumulate_grad_hook(note) for p in _sentinels(parameters)),
        ]
        # Torch's list of hooks is global: a strategy that failed and is gone leaves none there.
        weakref.finalize(self, _remove_all, self._hooks).atexit = False

    def release(self) -> None:
        strategy = self._strategy()
        if strategy is not None and _WINDOWS.get(strategy) is self:
            del _WINDOWS[strategy]
        _remove_all(self._hooks)

    def close(self) -> None:
        strategy = self._strategy()
        due = [action for action in self.actions if action.is_due]
        self.actions = []
        if strategy is None or self._stepped or getattr(strategy, "handles_nonfinite", False):
            return
        if not self._remade and _can_be_seen(strategy):
            return  # no step was taken
        if all(parameter.grad is None for parameter in stepped_parameters(strategy)):
            return
        for action in due:
            if action.late:
                action.act(strategy, None)
        if needed := [action.argument for action in due if not action.late]:
            raise RuntimeError(_unseen(strategy, needed))

    def _note(self, *_: Any) -> None:
        """Gradients have been made: all that was done to the former ones is to be done again."""
        self._remade = True
        for action in self.actions:
            action.is_due = True

    def _before_step(
        self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        strategy = self._strategy()
        if strategy is None or not holds_any(optimizer, self._ids):
            return None
        self._stepped = True
        self._act(strategy, None)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            return None
        for action in self.actions:
            if action.prepare is not None:
                action.prepare(strategy)
        restricted = partial(self._call, strategy, closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": restricted}
        return (args[0], restricted, *args[2:]), kwargs

    def _call(self, strategy: Strategy, closure: Callable[[], Any]) -> Any:
        """Call a closure and act on the gradients that it makes, if it makes any."""
        self._remade, before = False, _versions(strategy)
        loss = closure()
        if not self._remade and _have_changed(before):
            self._note()
        if self._act(strategy, loss):
            return loss
        return torch.zeros_like(loss) if isinstance(loss, Tensor) else 0.0

    def _act(self, strategy: Strategy, loss: Any) -> bool:
        """Do what is due; return whether the step may change anything."""
        allowed = True
        for action in self.actions:
            if action.is_due:
                action.is_due = False
                allowed = action.act(strategy, loss) is not False and allowed
        return allowed


# Of the strategies that are in a step.
_WINDOWS: weakref.WeakKeyDictionary[Any, _Window] = weakref.WeakKeyDictionary()


def _remove_all(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()


def _weak(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing when the method's owner is gone."""
    known: weakref.WeakMethod[Callable[..., Any]] = weakref.WeakMethod(method)

    def hook(*arguments: Any) -> Any:
        method = known()
        return None if method is None else method(*arguments)

    return hook


def _sentinels(parameters: list[nn.Parameter]) -> list[Any]:
    """Parameters that tell that gradients are made: two that the strategy's loss depends on."""
    used = [parameter for parameter in parameters if parameter.grad is not None]
    if not used:
        return [parameter for parameter in parameters if parameter.requires_grad]
    ends = [used[0], used[-1]] if len(used) > 1 else used
    return [parameter for parameter in ends if parameter.requires_grad and parameter.is_leaf]


_Versions = list[tuple[nn.Parameter, "weakref.ref[Tensor] | None", int]]


def _versions(strategy: Strategy) -> _Versions:
    """The gradients that there are, to tell whether they are changed."""
    return [
        (p, None, 0) if p.grad is None else (p, weakref.ref(p.grad), p.grad._version)
        for p in stepped_parameters(strategy)
    ]


def _have_changed(before: _Versions) -> bool:
    """Whether there are gradients that are new, or have been written to."""
    return any(
        parameter.grad is not None
        and (known is None or known() is not parameter.grad or parameter.grad._version != version)
        for parameter, known, version in before
    )


def _can_be_seen(strategy: Strategy) -> bool:
    """Whether an optimiser of the strategy calls hooks."""
    within = (each for own in optimizers_of(strategy) for each in optimizers_within(own))
    return any(map(calls_hooks, within))


def _unseen(strategy: Strategy, arguments: list[str]) -> str:
    kind = type(stepping_optimizer(strategy.optimizer)).__name__
    others = " and ".join(sorted({argument for argument in arguments if argument}))
    instead = f", or use {others}" if others else ""
    return (
        f"optimizer: the step of {kind} has not called the hooks of torch.optim.Optimizer, so that "
        "the gradients it has moved by could not be restricted: derive its class from it, call "
        f"its constructor, and move by its `step`{instead}"
    )
