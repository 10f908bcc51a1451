"""Rows and parameters held through every step that an optimiser takes, whoever calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from avalanche_mgem.model.element_wise import is_element_wise, long_parameters, step_alone
from avalanche_mgem.model.holding import (
    HeldRows,
    HeldWhole,
    hold_copies,
    intersected,
    kept_rows_of,
)
from avalanche_mgem.model.optimizers import (
    calls_hooks,
    holds_any,
    moves_by_gradient_alone,
    optimizers_within,
    stepping_optimizer,
)
from avalanche_mgem.model.stand_in import KeptRows, is_mostly_kept, step_kept_rows
from avalanche_mgem.model.units import GatedLayer

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_Masks = list[KeptRows]


def hold_rows(
    optimizer: Any,
    layers: Iterable[GatedLayer],
    kept: Mapping[str, Tensor],
    *,
    still: Iterable[nn.Parameter] = (),
    copy: bool = False,
) -> StepHold:
    """Hold rows still through every step of an optimiser, until `end` or `remove` (ours).

        hold = hold_rows(optimizer, layers, kept)
        optimizer.step()
        hold.end()

    Masked rows of parameters and of their optimiser's state do not change by one bit, whoever
    calls `step`: a gradient scaler, a learning rate scheduler's wrapper, accelerate. Optimisers
    inside of the given ones, as in a lookahead, are held too. Parameters without a gradient are
    left alone, and layers of which all is kept cost nothing. Several holds on one optimiser add up:
    a row moves where all of them keep it.

    torch's own element-wise optimisers (SGD, Adam, AdamW, ...) are shown the kept rows only, as
    small parameters of their own: on a CPU a few at a time, which takes hardly any memory and on
    the whole no longer than a plain step; on an accelerator all at once. Of a large parameter of
    which more than two thirds are kept, the masked rows are put back instead. An error in a step
    leaves some rows stepped and others not, as in a plain one, but masked rows untouched. The kept
    rows move as in a plain step, to the bit but for kernels that round the last few elements of a
    tensor differently (torch's fused ones on a CPU, and most in half precision).

    Of any other optimiser, and where `step` is given a closure, the masked rows are put back after
    the step, as by `RowKeeper`, which also says what becomes of state that is made in a step. An
    error in such a step leaves masked rows as the step has them.

    Of an optimiser whose `step` calls none of torch's hooks, the masked rows are put back by `end`:
    so call that, not `remove`.

    Args:
        optimizer: whose steps are held, or several in a list; of accelerate's wrapper, the one
            inside. A copy or a pickle of it is not held.
        layers: whose rows are held; biases are left alone.
        kept: of each layer by its name, bool [n]; a layer that has none is left alone.
        still: parameters of which nothing may move, as if they had no gradient.
        copy: True: `end` puts back whatever has moved until then, in a step that is not the
            optimiser's `step` either. It takes a copy of what is held.

    Raises:
        ValueError: a mask that has not as many rows as its layer.
    """
    layers = list(layers)
    for layer in layers:
        mask = kept.get(layer.name)
        if mask is not None and layer.rows and mask.shape != layer.shape:
            raise ValueError(
                f"kept must be bool {list(layer.shape)} for {layer.name!r}, got {tuple(mask.shape)}"
            )
    masks = [rows.on_its_device() for rows in kept_rows_of(layers, kept)]
    given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    return StepHold(given, masks, list(still), copy=copy)


class StepHold:
    """What `hold_rows` holds, until `end` or `remove`. A copy or a pickle of it holds nothing."""

    def __init__(
        self, optimizers: Sequence[Any], masks: _Masks, still: list[nn.Parameter], *, copy: bool
    ) -> None:
        self._masks, self._still = masks, still
        held = {id(rows.parameter) for rows in masks} | {id(each) for each in still}
        stepping = [stepping_optimizer(each) for each in optimizers]
        every = list({id(e): e for each in stepping for e in optimizers_within(each)}.values())
        # Those whose own step must be seen, or something has moved past all hooks.
        self._expected = {id(each) for each in stepping if holds_any(each, held)}
        self._seen: set[int] = set()
        self._ends: dict[int, list[Callable[[], None] | None]] = {}  # of steps within steps
        copy = copy or not all(map(calls_hooks, stepping))
        self._copies = _copies(masks, still, every) if copy else []
        self._hooks = [
            handle
            for each in every
            if calls_hooks(each)
            for handle in (
                each.register_step_pre_hook(self._before_step),
                each.register_step_post_hook(self._after_step),
            )
        ]

    def __getstate__(self) -> dict[str, object]:
        return vars(StepHold([], [], [], copy=False))

    def end(self) -> bool:
        """Put back what has moved past the optimisers' hooks, and take the hooks off.

        Returns:
            Whether the hooks are enough: every optimiser has called them, and nothing has moved.
        """
        hooks_are_enough = self._expected <= self._seen
        for kept in self._copies:
            hooks_are_enough = hooks_are_enough and not kept.have_moved()
            kept.restore()
        self.remove()
        return hooks_are_enough

    def remove(self) -> None:
        """Take the hooks off the optimisers; a second time, nothing."""
        while self._hooks:
            self._hooks.pop().remove()
        self._masks, self._still, self._copies = [], [], []
        self._ends.clear()

    def _before_step(
        self, optimizer: optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        self._seen.add(id(optimizer))
        # A class that calls its parent's step is in two steps at once; the outer one ends last.
        ends = self._ends.setdefault(id(optimizer), [])
        ends.append(None)
        holds = _holds_on(optimizer)
        if holds[0] is not self:
            return None  # it has held the rows of all
        still = {id(parameter): parameter for hold in holds for parameter in hold._still}
        masks = intersected(rows for hold in holds for rows in hold._masks)
        masks = [rows for rows in masks if id(rows.parameter) not in still]
        has_closure = kwargs.get("closure", args[1] if len(args) > 1 else None) is not None
        if not has_closure and is_element_wise(optimizer, (rows.parameter for rows in masks)):
            return (self._stand_in(optimizer, masks, {*still}), *args[1:]), kwargs
        put_back = _PutBack(optimizer, masks, list(still.values()))
        ends[-1] = put_back.end
        return put_back.arguments(args, kwargs)

    def _stand_in(
        self, optimizer: optim.Optimizer, masks: _Masks, done: set[int]
    ) -> optim.Optimizer:
        """Step what is gated or large; return an optimiser that steps all others.

        done: the ids of parameters that do not step.
        """
        mostly = [rows for rows in masks if is_mostly_kept(rows)]
        _step_and_put_back(optimizer, mostly)
        done |= {id(rows.parameter) for rows in mostly}
        masks = [rows for rows in masks if id(rows.parameter) not in done]
        gated = {id(rows.parameter) for rows in masks}
        if mostly or masks:
            for parameter in [*long_parameters(optimizer, done | gated)]:
                step_alone(optimizer, parameter)
                done.add(id(parameter))
        return step_kept_rows(optimizer, masks, done)

    def _after_step(
        self, optimizer: optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if ends := self._ends.get(id(optimizer)):
            end = ends.pop()
            if end is not None:
                end()


def _step_and_put_back(optimizer: optim.Optimizer, masks: _Masks) -> None:
    """Step parameters one by one, with copies of one's masked rows at a time."""
    for rows in masks:
        if rows.parameter.grad is None:
            continue
        held = hold_copies([rows], [optimizer])
        try:
            step_alone(optimizer, rows.parameter)
        finally:
            for copies in held:
                copies.restore()


def _copies(
    masks: _Masks, still: Iterable[nn.Parameter], optimizers: Sequence[Any]
) -> list[HeldRows | HeldWhole]:
    return [*hold_copies(masks, optimizers), *(HeldWhole(each, optimizers) for each in still)]


def _holds_on(optimizer: optim.Optimizer) -> list[StepHold]:
    hooks = optimizer._optimizer_step_pre_hooks.values()
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, StepHold)]


class _PutBack:
    """What holds rows and parameters through a step that sees them all."""

    def __init__(
        self, optimizer: optim.Optimizer, masks: _Masks, still: list[nn.Parameter]
    ) -> None:
        moves = [] if moves_by_gradient_alone(optimizer) else still
        self._kept = _copies(masks, moves, [optimizer])
        self._still, self._gradients = still, list[tuple[nn.Parameter, Tensor]]()

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the step's arguments, a closure made to hide the gradients that it makes."""
        self._hide()
        closure = kwargs.get("closure")
        if closure is not None:
            return args, {**kwargs, "closure": lambda: self._hide(closure())}
        if len(args) > 1 and args[1] is not None:
            return (args[0], lambda: self._hide(args[1]()), *args[2:]), kwargs
        return args, kwargs

    def _hide(self, loss: Any = None) -> Any:
        for parameter in self._still:
            if parameter.grad is not None:
                self._gradients.append((parameter, parameter.grad))
                parameter.grad = None
        return loss

    def end(self) -> None:
        for kept in self._kept:
            kept.restore()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
