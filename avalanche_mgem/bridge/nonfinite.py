"""What keeps numbers that are not finite from the weights: such a step is not taken (ours)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import one_of
from avalanche_mgem.bridge.finite import all_finite, is_finite
from avalanche_mgem.bridge.loop import OF_A_STEP, LoopWatch
from avalanche_mgem.bridge.optimizers import (
    optimizers_of,
    parameters_of_all,
    require_optimizer,
    stepped_parameters,
)
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.watch import Action, Order, StepWatch
from avalanche_mgem.model.distributed import add_up, n_processes, require_in_step, unwrapped
from avalanche_mgem.model.freezing import SavedBuffers
from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.optimizers import moves_by_gradient_alone
from avalanche_mgem.model.snapshot import OptimizerSnapshot

OnNonFinite = Literal["raise", "skip"]


class StepGuard:
    """Sees to it that a step is taken only where loss and gradients are finite.

        guard.start(strategy, plugin)     # before an experience
        guard.open(strategy)              # before an iteration, and before anything runs forward
        guard.add_loss(strategy)          # after a backward pass
        guard.watch(strategy)             # before the optimiser's step
        if guard.allows(strategy): ...
        guard.close()                     # after it
        guard.end(strategy, release)      # after an iteration, and after the experience

    Several iterations before one step, as when gradients are accumulated, are one step: it is
    closed once.

    A step that is skipped changes no parameter and no state of the optimiser, because nothing has a
    gradient, and the buffers that the step's forward passes moved, such as running statistics, are
    put back. After it, the gradients are zero, for those who read them at the end of an iteration.
    Where a parameter itself is not finite, no step ever will be: that is an error with "skip" too.
    (An optimiser that is not one of torch's, or LBFGS, takes the step with gradients of zero, and
    is put back afterwards.)

    Gradients that the step makes itself, by a closure or by running the model again, are looked at
    too. A step with a closure may have moved parameters by then: all that it has moved is put back,
    for which its beginning is kept as a copy of the parameters and of the optimiser's state.

    What is looked at are the gradients at the plugin's own turn; what a plugin behind it does to
    them is not seen.

    The guards of all plugins of a strategy act as one: what one of them refuses is skipped, and
    counted, by all, and raises an error where one of them is to raise it.

    Where `strategy.handles_nonfinite` is true, as beside a gradient scaler that leaves this step
    out itself, gradients of the minibatch are left to it; loss and memory rows are not.

    Args:
        on_nonfinite: "raise": an error ends the training. "skip": the step is left out and counted.

    Attributes:
        skipped_steps: how many were left out.

    Raises:
        ValueError: another `on_nonfinite`.
    """

    def __init__(self, on_nonfinite: OnNonFinite) -> None:
        self.on_nonfinite = one_of("on_nonfinite", on_nonfinite, ("raise", "skip"))
        self.skipped_steps = 0
        self._watch = StepWatch()
        self._loop = LoopWatch()
        self._begin()

    def __getstate__(self) -> dict[str, object]:
        # A copy begins between two steps: what is of one step is of this model.
        kept = {name: vars(self)[name] for name in ("on_nonfinite", "skipped_steps")}
        return {**vars(StepGuard("raise")), **kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        # Of a checkpoint that is older than an attribute.
        vars(self).update({**vars(StepGuard("raise")), **state})

    @property
    def skips(self) -> bool:
        """Whether the step that has begun is skipped."""
        return self._skips

    def start(
        self, strategy: Strategy, plugin: object, events: Collection[str] = OF_A_STEP
    ) -> None:
        """Begin an experience; forget a step that an error has ended.

        events: of a step, which the plugin needs.

        Raises:
            ValueError: the strategy has no optimiser, or a training loop that never calls the
                plugin; the plugin is named.
        """
        require_optimizer(strategy, type(plugin).__name__)
        self._loop.start(strategy, plugin, events)
        self._begin()

    def end(self, strategy: Strategy, release: Callable[[], None]) -> None:
        """End an iteration, or an experience.

        release: is called before an error.

        Raises:
            RuntimeError: the training loop has moved parameters without an event that is needed.
        """
        self._loop.end(strategy, release)

    def release(self) -> None:
        """Take off what a step that an error has ended has left."""
        self._watch.release()

    def _begin(self) -> None:
        self.release()
        self._in_step = False  # whether the processes are known to be
        self._reset()

    def _reset(self) -> None:
        self._buffers: SavedBuffers | None = None
        self._forget()

    def _forget(self) -> None:
        self._is_open = self._skips = False
        self._undo: OptimizerSnapshot | None = None
        self._losses: list[Tensor] = []
        self._without: list[nn.Parameter] = []  # a gradient, because they lost theirs
        self._seen: _Seen | None = None
        self._stepped: list[nn.Parameter] = []

    def open(self, strategy: Strategy) -> None:
        """Begin a step, unless one has begun that is not over."""
        self._loop.begin(strategy)
        self._loop.saw("before_training_iteration")
        if self._is_open:
            return
        self._reset()
        self._is_open = True
        # The first plugin's guard does it for all: no forward pass of a later one has moved them.
        if self.on_nonfinite == "skip" and _guards(strategy, self)[0] is self:
            self._buffers = SavedBuffers(strategy.model)

    def add_loss(self, strategy: Strategy) -> None:
        """Note the loss of a minibatch; it is looked at before the step."""
        self._loop.saw("after_backward")
        loss = strategy.loss
        if isinstance(loss, Tensor) and loss.is_floating_point():
            self._losses.append(loss.detach())

    def watch(self, strategy: Strategy, *actions: Action) -> None:
        """Look at the gradients that the step makes itself, before these actions of the plugin."""
        self._loop.saw("before_update")
        check = Action(Order.CHECK, self._check, prepare=self._keep, late=True)
        own = [check] if _guards(strategy, self)[0] is self else []
        self._watch.open(strategy, *own, *actions)

    def acted(self) -> None:
        """Say that the plugin has acted on the present gradients of itself."""
        self._watch.acted()

    def allows(self, strategy: Strategy) -> bool:
        """Return whether the step may be taken.

        Raises:
            RuntimeError: the first time in an experience, parameters or gradients that are not the
                same in all processes.
            FloatingPointError: it may not, and on_nonfinite="raise"; the experience, the iteration
                and the parameter are named.
        """
        if not self._in_step:
            require_in_step(strategy.model)
            self._in_step = True
        if not self._skips:
            if self._is_as_seen(strategy):
                return True
            gradients = [] if _left_to_others(strategy) else _gradients(strategy)
            if _on_all_ranks(all_finite([*self._losses, *gradients]), strategy):
                return True
            self._refuse(strategy, self._reason(strategy) or "another process has NaN or Inf")
        self._leave_out(strategy)
        return False

    def _is_as_seen(self, strategy: Strategy) -> bool:
        seen, self._seen = self._seen, None  # it keeps gradients alive
        return seen is not None and seen.is_still(*self._present(stepped_parameters(strategy)))

    def outside(
        self, strategy: Strategy, optimizers: list[Any], covered: Container[int]
    ) -> list[Tensor] | None:
        """Return what must be finite of losses and gradients; None: `allows` must be asked.

        For who looks at gradients himself, and may as well look at the rest at the same time. Where
        all of it is finite he says so by `saw`, otherwise he asks `allows`.

        optimizers: of the strategy.
        covered: the parameters whose gradients he looks at, by their ids.
        """
        if self._skips or n_processes() > 1:
            return None
        self._stepped = list(parameters_of_all(optimizers))
        stepped = [] if _left_to_others(strategy) else self._stepped
        others = [p.grad for p in stepped if p.grad is not None and id(p) not in covered]
        return [*self._losses, *others]

    def saw(self) -> None:
        """Say that what `outside` is of is finite, so that no one looks until it changes."""
        self._seen = _Seen(*self._present(self._stepped))

    def _present(self, stepped: Iterable[nn.Parameter]) -> tuple[int, list[tuple[Tensor, int]]]:
        gradients = (p.grad for p in stepped)
        return len(self._losses), [(g, g._version) for g in gradients if g is not None]

    def _check(self, strategy: Strategy, loss: Any) -> bool:
        """Look at gradients that the step has made, and at the loss of its closure."""
        if isinstance(loss, Tensor) and loss.is_floating_point():
            self._losses.append(loss.detach())
        return self.allows(strategy)

    def _keep(self, strategy: Strategy) -> None:
        """Keep what the step begins from."""
        if self._undo is None:
            self._undo = OptimizerSnapshot(*optimizers_of(strategy))

    def refuse(self, strategy: Strategy, error: FloatingPointError, row: str | None = None) -> None:
        """Skip the step, as what it needs could not be computed.

        row: what is wrong with a memory row; None: nothing is.

        Raises:
            FloatingPointError: on_nonfinite="raise"; what is not finite is named, or what `error`
                says if everything is finite.
        """
        reason = row or self._loss_reason()
        if reason is None and (gradient := _gradient_reason(strategy)) is not None:
            if _left_to_others(strategy):
                return
            reason = gradient
        self._refuse(strategy, reason or str(error), error)
        self._leave_out(strategy)

    def close(self) -> None:
        """End the step.

        Raises:
            RuntimeError: it has made gradients anew that could not be restricted, see `StepWatch`.
        """
        self._loop.saw("after_update")
        if self._skips:
            self._put_back()
        for parameter in self._without:
            parameter.grad = torch.zeros_like(parameter)
        # Another plugin may refuse the step after it was taken; so the buffers stay at hand.
        self._forget()
        self._watch.close()

    def _put_back(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.restore()
        if self._skips and self._buffers is not None:
            self._buffers.restore()

    def _refuse(self, strategy: Strategy, reason: str, error: Exception | None = None) -> None:
        guards = _guards(strategy, self)
        if any(guard.on_nonfinite == "raise" for guard in guards):
            guards[0]._put_back()
            raise FloatingPointError(
                f"{reason}, in {place(strategy)}; the weights are as before this step "
                f"(on_nonfinite='skip' leaves such steps out and counts them)"
            ) from error
        if (parameter := _parameter_reason(strategy)) is not None:
            raise FloatingPointError(
                f"{parameter}, in {place(strategy)}: no step will be finite any more"
            ) from error
        for guard in guards:
            guard.skipped_steps += 1
            guard._skips = guard._is_open
            if guard._buffers is not None:
                guard._buffers.restore()

    def _leave_out(self, strategy: Strategy) -> None:
        """See to it that the step changes nothing."""
        first = _guards(strategy, self)[0]
        simple = all(map(moves_by_gradient_alone, optimizers_of(strategy)))
        if not simple:
            first._keep(strategy)
        for parameter in {*stepped_parameters(strategy), *strategy.model.parameters()}:
            if parameter.grad is None:
                continue
            if first._undo is not None:
                parameter.grad.zero_()  # some optimisers fail without gradients
                continue
            # No optimiser of torch's touches what has no gradient, nor its state.
            parameter.grad = None
            self._without.append(parameter)

    def _reason(self, strategy: Strategy) -> str | None:
        return self._loss_reason() or _gradient_reason(strategy)

    def _loss_reason(self) -> str | None:
        bad = (loss for loss in self._losses if not is_finite(loss))
        return next((f"the loss is NaN or Inf, got {float(loss.sum())}" for loss in bad), None)


class _Seen:
    """Losses and gradients as they were at one time."""

    def __init__(self, losses: int, gradients: list[tuple[Tensor, int]]) -> None:
        self._losses, self._gradients = losses, gradients

    def is_still(self, losses: int, gradients: list[tuple[Tensor, int]]) -> bool:
        """Whether these are the same, and nothing was written to them."""
        if losses != self._losses or len(gradients) != len(self._gradients):
            return False
        pairs = zip(gradients, self._gradients, strict=True)
        return all(a is b and version == known for (a, version), (b, known) in pairs)


class GuardsSteps:
    """What a plugin shows of the guard in it."""

    _guard: StepGuard

    def release_hooks(self) -> None:
        """Take off what a step that an error has ended has left."""
        self._guard.release()

    @property
    def on_nonfinite(self) -> str:
        """What becomes of a step that is not finite: "raise" or "skip"."""
        return self._guard.on_nonfinite

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out."""
        return self._guard.skipped_steps


def place(strategy: Strategy) -> str:
    """Return where a training is, in words; experiences and iterations count from 0."""
    clock = strategy.clock
    number = getattr(strategy.experience, "current_experience", clock.train_exp_counter)
    return f"experience {number}, iteration {clock.train_exp_iterations}"


def _gradient_reason(strategy: Strategy) -> str | None:
    names = {id(p): name for name, p in unwrapped(strategy.model).named_parameters()}
    bad = [p for p in stepped_parameters(strategy) if p.grad is not None and not is_finite(p.grad)]
    if not bad:
        return None
    name = names.get(id(bad[0]))
    first = f"{name!r}" if name else f"a parameter {tuple(bad[0].shape)} outside the model"
    others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"the gradient of {first}{others} holds NaN or Inf"


def _gradients(strategy: Strategy) -> list[Tensor]:
    return [p.grad for p in stepped_parameters(strategy) if p.grad is not None]


def _parameter_reason(strategy: Strategy) -> str | None:
    named = unwrapped(strategy.model).named_parameters()
    bad = (name for name, p in named if not is_lazy(p) and not is_finite(p.detach()))
    return next((f"the parameter {name!r} itself holds NaN or Inf" for name in bad), None)


def _left_to_others(strategy: Strategy) -> bool:
    return bool(getattr(strategy, "handles_nonfinite", False))


def _guards(strategy: Strategy, own: StepGuard) -> list[StepGuard]:
    """The guards of all plugins, in their order; `own` is one of them."""
    found = [plugin._guard for plugin in strategy.plugins if isinstance(plugin, GuardsSteps)]
    return found if any(guard is own for guard in found) else [*found, own]


def _on_all_ranks(finite: bool, strategy: Strategy) -> bool:
    """Whether it is so in all processes: each has its own loss, and all must do the same."""
    if n_processes() == 1:
        return finite
    bad = torch.tensor(float(not finite), device=strategy.device)
    add_up(bad)
    return not bool(bad)
