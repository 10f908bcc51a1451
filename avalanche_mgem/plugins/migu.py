"""Magnitude-based gradient updating (MIGU) as a plugin."""

from __future__ import annotations

from itertools import chain
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from avalanche_mgem.arguments import positive_int
from avalanche_mgem.bridge.beside import refuse_beside_cwr, refuse_beside_packnet
from avalanche_mgem.bridge.boundaries import task_boundary
from avalanche_mgem.bridge.finite import have_small_products
from avalanche_mgem.bridge.nonfinite import GuardsSteps, OnNonFinite, StepGuard
from avalanche_mgem.bridge.optimizers import optimizers_of
from avalanche_mgem.bridge.samples import require_samples
from avalanche_mgem.bridge.still import Still
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.watch import Action, Order
from avalanche_mgem.bridge.whole_gradients import GradientReaders
from avalanche_mgem.model.distributed import (
    require_whole_parameters,
    unwrapped,
)
from avalanche_mgem.model.fused import Fused
from avalanche_mgem.model.gate import Freeze, RowGate, Score, Ungated
from avalanche_mgem.model.gate_shown import ShowsGate
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.targets import TargetModules
from avalanche_mgem.restriction.rows import Normalize


class MIGUPlugin(ShowsGate, GuardsSteps, SupervisedPlugin):
    """Let only those rows of linear layers move whose outputs are the largest.

    For each gated layer y = xW' + b, n_i is the mean of |y_i| over all tokens of the minibatch; the
    floor(mask_fraction * out) rows of W with the smallest n_i are held still in that step. Runs on
    `before_forward` and `after_forward` (n), `before_update` (the mask) and `after_update`. Clip
    gradients after it. Source: "Unlocking Continual Learning Abilities in Language Models" (arXiv
    2406.17245, eq. 3-6). The authors' code masks what is below the T-quantile of n, which is
    ceil(T * (out - 1)) rows: with T = 0.7 one more than here where out ends in 4 or 7 (of 1,024
    rows 717 against 716), else as many. Of rows with equal n it keeps all, here the first are kept.

    Steps that accumulate gradients: n is summed over all forward passes since the last
    `after_update`, so a strategy must trigger `before_update` and `after_update` only where its
    optimiser steps.

    Which rows are masked is known when the forward pass ends. Where nothing else needs them, the
    gradients of masked rows of Linear, Conv2d and Conv1D layers are not even computed, which makes
    large layers train faster than without the plugin; `last_path` says of which, and why not of the
    others. Masks are the same either way, and gradients of kept rows differ by rounding. What is
    not computed cannot overflow either: of a gradient that is infinite or NaN in masked rows alone
    `on_nonfinite` learns nothing then.

    Several processes, the model in DistributedDataParallel: n is over the minibatches of all, and
    all mask the same rows. See `avalanche_mgem.bridge.distributed`.

    Args:
        mask_fraction: T in [0, 1), the fraction of the rows that is held still: 0.7 in the paper
            for full fine-tuning and LoRA, 0.4 beside replay, 0.05 to 0.1 beside O-LoRA.
        target_modules: the gated layers. None (default, ours): every linear layer, convolution,
            attention, recurrent layer, mixture of experts and LoRA layer but output heads and
            layers whose weight is shared; "all-linear", a regular expression on whole names, or a
            list of names or their last parts, as peft's; see
            `avalanche_mgem.model.layers.find_gated_layers`. Of a LoRA layer, A is gated by |xA|
            and B by the combined output. Each expert's rows are chosen by themselves, by the tokens
            that are routed to it; an expert without a token is held still as a whole.
        heads: the output heads, which always train; None: the usual ones, see there.
        score: "output" (as published), or another score to compare it with: "gradient" (|dL/dW|,
            the mean over a row), "weight" (|W|) (both as the paper's table 11) or "random".
        freeze: "gradient" (as published): the gradients of masked rows are zero. That holds them
            still under plain SGD only: momentum, the moments of Adam and weight decay move them.
            "update" (ours): masked rows and their part of the optimiser's state are the same to the
            bit after the step, whatever the optimiser, those inside of another (SAM, lookahead) and
            further ones of the strategy too. Gradients that a step makes itself, by a closure or
            between two parts, are masked each. Muon makes the update orthogonal, which leaves rows
            of zeros as they are and the others longer (1.5 times in a weight [64, 32] with 0.7
            masked); its momentum moves masked rows under "gradient", so use "update" with it.
        ungated: what becomes of parameters that are neither rows of a gated layer nor in a head,
            such as biases, norms and embeddings, where rows are masked: "train" (as published) or
            "freeze" (ours).
        normalize: "none" (as the authors' code) or "token": each token's |y| is divided by its L1
            norm first, as the paper's text may be read.
        ignore_padding: leave out the tokens that the input's `attention_mask` leaves out (ours).
        fused: layers that hold several matrices, such as gpt2's c_attn: "layer" (as published) or
            "parts" (ours), where each of queries, keys and values has its own `mask_fraction`; or
            sizes of parts by layer, {"qkv": (64, 16, 16)}.
        skip_tasks: the first tasks, which train freely; the paper's is 1.
        skip_steps: the first steps that train freely, where a stream does not tell its tasks.
        seed: of score="random". None: torch's current initial seed.
        on_nonfinite: a step with NaN or Inf in its loss, a gradient or a score: "raise" an error
            that names it, or "skip" it: no weight, no state of the optimiser and no running
            statistic changes by it; see `avalanche_mgem.bridge.nonfinite.StepGuard`.

    Attributes:
        mask_fraction: as above.
        last_mask: which rows the last iteration might move, bool [n] for each gated layer by its
            name, or [*blocks, n]; None where all might.
        last_scores: n of the last iteration, float32 [n] by layer, also where nothing was masked;
            None before the first.
        last_path: how the gradients of the last iteration that masked rows were made, by layer; see
            there.
        skipped_steps: how many steps were left out (on_nonfinite="skip"); they leave the two above
            as they were.

    Raises:
        ValueError: an argument out of range, at construction; a target that matches nothing, a
            model without a layer to gate or, with score="output", a compiled one, before the first
            iteration; a strategy or plugin of Avalanche's that this does not go together with
            (docs/combinations.md); ignore_padding=True, and an input without an `attention_mask`.
        RuntimeError: parameters or gradients are not the same in all processes, before the first
            step of an experience; score="output", and no output of a gated layer was seen in a
            step; freeze="gradient", and an optimiser has moved by gradients that its step has made,
            without calling the hooks of torch's optimisers; a training loop has moved the
            parameters without calling this plugin.
        FloatingPointError: what is not finite (on_nonfinite="raise"), before the optimiser's step;
            running statistics have seen the minibatch by then.
    """

    def __init__(
        self,
        mask_fraction: float = 0.7,
        *,
        target_modules: TargetModules = None,
        heads: Heads = None,
        score: Score = "output",
        freeze: Freeze = "gradient",
        ungated: Ungated = "train",
        normalize: Normalize = "none",
        ignore_padding: bool = False,
        fused: Fused = "layer",
        skip_tasks: int = 1,
        skip_steps: int = 0,
        seed: int | None = None,
        on_nonfinite: OnNonFinite = "raise",
    ) -> None:
        super().__init__()
        self.supports_distributed = True
        self._guard = StepGuard(on_nonfinite)
        self._gate = RowGate(
            mask_fraction,
            target_modules=target_modules,
            heads=heads,
            score=score,
            freeze=freeze,
            ungated=ungated,
            normalize=normalize,
            ignore_padding=ignore_padding,
            fused=fused,
            seed=seed,
        )
        self.skip_tasks = positive_int("skip_tasks", skip_tasks, minimum=0)
        self.skip_steps = positive_int("skip_steps", skip_steps, minimum=0)
        self._tasks = 0  # that have begun
        self._unfinished: int | None = None  # the experience that has begun and not ended
        self._steps = 0
        self._boundaries_known = True
        self._readers = GradientReaders()

    def after_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Refuse an experience without samples."""
        require_samples(strategy)

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Find the layers; count the task that starts."""
        require_whole_parameters(strategy.model, "MIGUPlugin")
        refuse_beside_packnet(strategy, self, "reads outputs of layers that PackNet never calls")
        refuse_beside_cwr(strategy, self, "gates layers before the last")
        self._guard.start(strategy, self)
        self._gate.find(unwrapped(strategy.model))
        self._readers = GradientReaders()
        boundary = task_boundary(strategy.experience)
        self._boundaries_known = boundary.known
        # A task whose training has failed and begins again is no second one.
        again = self._unfinished == (place := strategy.experience.current_experience)
        self._tasks += boundary.starts and not again
        self._unfinished = place

    def before_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Remember what a skipped step must put back (on_nonfinite="skip")."""
        self._guard.open(strategy)

    def before_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Begin to record the magnitudes."""
        whole = self._readers.why(strategy, self) if self._is_active() else "no row is masked"
        self._gate.open(unwrapped(strategy.model), strategy.mb_x, whole=whole, takes_norms=True)

    def after_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        """End it."""
        self._gate.close(unwrapped(strategy.model), strategy.mb_output)

    def after_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Note the loss."""
        self._guard.add_loss(strategy)

    def before_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Mask the gradients, and hold the rows through the step (freeze="update")."""
        again = Action(Order.MASK, self._mask_again, argument="freeze='update'")
        again.late = self._gate.freeze == "update"  # the rows are put back in any case
        self._guard.watch(strategy, *([again] if self._is_active() else []))
        self._see_finite(strategy)
        if not self._guard.allows(strategy):
            return
        if not self._is_active():
            self._gate.look(unwrapped(strategy.model))
            return
        try:
            self._gate.mask(unwrapped(strategy.model))
        except FloatingPointError as error:
            self._guard.refuse(strategy, error)
            return
        if self._gate.holds:
            self._gate.hold(unwrapped(strategy.model), *optimizers_of(strategy))

    def _see_finite(self, strategy: Strategy) -> None:
        """Tell the guard where small factors say that large gradients are finite, unread."""
        if norms := self._gate.norms(unwrapped(strategy.model)):
            others = self._guard.outside(strategy, optimizers_of(strategy), norms)
            if others is not None and have_small_products([*others, *chain(*norms.values())]):
                self._guard.saw()

    def _mask_again(self, strategy: Strategy, loss: Any) -> None:
        """Mask gradients that the step has made itself."""
        if not self._guard.skips:
            self._gate.mask(unwrapped(strategy.model))

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Forget the step."""
        self._gate.release()
        self._gate.unhide()
        self._gate.reset()
        self._steps += not self._guard.skips
        self._guard.close()

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """See to it that the training loop has called what this acts on."""
        self._guard.end(strategy, self.release_hooks)

    def release_hooks(self) -> None:
        """Take off what a step that an error has ended has left in model and optimiser."""
        super().release_hooks()
        self._gate.close()
        self._gate.drop()

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Note that it has ended."""
        self._guard.end(strategy, self.release_hooks)
        self._gate.forget()
        self._readers = GradientReaders()
        self._unfinished = None

    def held_still(self, strategy: Strategy, *, of: str) -> Still:
        """Return what this step holds still, see `avalanche_mgem.bridge.still`.

        With freeze="gradient", masked rows of the optimiser's update are not held.
        """
        if not self._is_active():
            return Still()
        gate, model = self._gate, unwrapped(strategy.model)
        rows = of == "gradient" or gate.freeze == "update"
        return Still(
            parameters=gate.held_parameters(model),
            rows=list(gate.held_rows(model)) if rows and gate.mask_fraction > 0 else [],
        )

    def _is_active(self) -> bool:
        if self._boundaries_known:
            return self._tasks > self.skip_tasks
        return self._steps >= self.skip_steps
