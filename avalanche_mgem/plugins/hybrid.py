"""The hybrid magnitude strategy: how much of the network moves on a new task, as a plugin."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, cast

from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from avalanche_mgem.arguments import one_of, positive_int
from avalanche_mgem.bridge.beside import refuse_before_scaling, refuse_beside_cwr
from avalanche_mgem.bridge.boundaries import Boundary, task_boundary
from avalanche_mgem.bridge.changes import watch_minibatch
from avalanche_mgem.bridge.collation import Collate, collate_of
from avalanche_mgem.bridge.decisions import Magnitude
from avalanche_mgem.bridge.distributed import require_unused
from avalanche_mgem.bridge.epochs import forget_epoch, when_the_epoch_begins
from avalanche_mgem.bridge.frozen import refuse_beside_frozen
from avalanche_mgem.bridge.magnitude import (
    ChoosesMagnitude,
    Granularity,
    Mode,
    probed_names,
    why_not_finite,
)
from avalanche_mgem.bridge.nonfinite import GuardsSteps, OnNonFinite, StepGuard
from avalanche_mgem.bridge.paths import forget_steps, show_gradients
from avalanche_mgem.bridge.probe_head import Chosen, ProbeHead, choose_head
from avalanche_mgem.bridge.samples import require_samples
from avalanche_mgem.bridge.shaped_step import ShapedStep
from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.bridge.trained_heads import TrainedHeads, require_head_epochs
from avalanche_mgem.bridge.trial import require_positions, try_probe
from avalanche_mgem.model.blocks import Blocks, Modules
from avalanche_mgem.model.distributed import (
    first_of_all,
    require_whole_parameters,
    unwrapped,
)
from avalanche_mgem.model.freezing import ModelReference
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.layers import find_heads, gateable_layers
from avalanche_mgem.model.lazy import uninitialized
from avalanche_mgem.restriction.similarity import Metric, Schedule

_LOG = logging.getLogger(__name__)

Reference = Literal["end", "start"]

_PROBE_HEADS = ("own", "ridge", "auto")


class HybridMagnitudePlugin(ChoosesMagnitude, GuardsSteps, SupervisedPlugin):
    """Train few modules on a task that is like the last one, and more on one that is not.

    At the start of each task after the first, s = metric(g_t, g_{t-1}), g being the gradient of the
    training loss of a task; where s is below the threshold the tasks are unrelated, and more
    modules train. What does not train is frozen for the task: its parameters, their part of the
    optimiser's state and its running statistics stay the same to the bit. The first task trains
    everything, and output heads train always; where two gradients have no parameter in common, as
    those of adapters that each task has anew, everything trains too. Source: "Exploring the Impact
    of Parameter Update Magnitude" (arXiv 2602.20796, algorithm 1), which leaves open the threshold,
    how many modules train on either side and which, how and when the gradients are taken, and
    heads: every default for these is ours.

    `magnitude_decay` (ours) makes the magnitude of updates shrink with the number of tasks: from
    the second task on the steps of what trains, but for the output heads, are multiplied by t^-p.
    It is the step that is scaled, with its momentum and weight decay; running statistics are not.
    Beside an MGEMPlugin take restrict="update" and put this plugin before it, so that the scaled
    step is what is restricted.

    Runs on `before_training_epoch` (the decision, before an experience's first epoch, when all
    plugins have prepared the model; parameters are frozen behind all plugins' part in this event,
    unless one of them stops the training there), `before_forward` (frozen batch norm in evaluation
    mode), each `after_training_epoch` (everything is thawed until the next epoch begins, or for
    what ends the task) and `after_training_exp` (g_{t-1}). Any order with other plugins will do. An
    exception in training leaves parameters frozen until the next training starts, or until `thaw`;
    the same task can be trained again then. A new strategy with another model begins anew, with a
    first task; a copy of the plugin goes on in one.

    Several processes, the model in DistributedDataParallel with find_unused_parameters=True: g is
    over the data of all, and the first one's decision is that of all. See
    `avalanche_mgem.bridge.distributed`.

    Args:
        mode: "adaptive", as above. "frozen": `low` modules train on every task after the first.
            "initialized": all do, as without the plugin. "decay" (ours): all do, and
            `magnitude_decay` is 0.5 unless given. The last three measure no gradient.
        threshold: of s. 0 is as published, and in the midst of the noise: with one head for all
            tasks, cosines of unrelated ones were seen from -.14 to .15 and of related ones from .34
            to .91, which .2 to .3 separates. See `last_decision`.
        low: how many modules train on a task that is like the last one, the nearest to the output;
            0: the heads alone.
        high: how many train on one that is not; None: all.
        schedule: "hard" (as published) or "graded" (ours): round(high + (low - high)(s + 1)/2)
            modules train, and the threshold plays no part.
        granularity: "model" (as published): s is over all modules. "module" (ours): each has its
            own s and trains where that is below the threshold; of more than `high` those nearest to
            the output do, and to fewer than `low` the nearest others are added.
        modules: what is frozen or trained as a whole, in order from the output side. None: blocks
            of a residual network, layers of a Transformer, else layers. A list of names or
            patterns, the one nearest to the output first; {name: [patterns]}; or a callable(model)
            -> {name: [parameter names]}; see `avalanche_mgem.model.blocks.find_blocks`.
        heads: the output heads, names or patterns; None: the usual ones, see
            `avalanche_mgem.model.layers.find_gated_layers`.
        metric: "cosine" (as published), "sign" (ours: the share of positions of one sign minus that
            of opposite signs) or a callable of two vectors [P] that returns a number.
        reference: g_{t-1} is the gradient on the previous task's data at the "end" of that task, or
            at its "start", which told no related task from an unrelated one on any stream seen.
        probe_head: the head that g_t and g_{t-1} are taken behind. "own": the model's. "ridge"
            (ours): one that is fitted in closed form to the features before the model's head, which
            stays as it is, see `avalanche_mgem.restriction.ridge_head`; the loss is cross-entropy.
            "auto": "ridge" where tasks have heads of their own, or one that grows, because the
            cosine behind a head of random weights is noise; "own" where all share one, and where
            the head does not classify, as one of tokens or pixels.
        probe_batches: g is the mean over so many minibatches of train_mb_size, or as many as the
            data have, with the model as it is before training; behind a fitted head, over 400
            samples where that is more. They leave no trace in the run.
        magnitude_decay: p >= 0: the steps of what trains are multiplied by t^-p in the t-th task
            (without task boundaries: from the t-th decision on), those of the output heads are not.
            None: 0.5 with mode="decay", else 0, which leaves every bit as it is. It takes a copy of
            the parameters in each step.
        low_magnitude: in [0, 1]: what the steps of modules are multiplied by that do not train by
            the decision. 0: they are frozen.
        magnitude: in place of t^-p: a callable of `task`, t, and `similarity`, s or None, that
            returns a number >= 0.
        head_epochs: ours: in so many epochs at the start of a task that has a new head, or one that
            has grown, the heads train alone and all else is frozen. Not in the first task, and not
            where a task's head has trained before.
        decide_every: iterations between two decisions, where a stream has no task boundaries: g_t
            is then taken on the data of the current sub-experience, and g_{t-1} is that of the last
            decision. Not used elsewhere.
        seed: of the probes. None: torch's current initial seed. The global random states are never
            drawn from.
        on_nonfinite: a step with NaN or Inf in its loss or a gradient: "raise" an error that names
            it, or "skip" it: no weight, no state of the optimiser and no running statistic changes
            by it; see `avalanche_mgem.bridge.nonfinite.StepGuard`. A g_t or g_{t-1} that is not
            finite raises an error too, or compares with nothing: everything trains.

    Attributes:
        last_decision: what trains, and why; None before training.
        skipped_steps: how many steps were left out (on_nonfinite="skip").
        skipped_probes: how many g_t or g_{t-1} were.

    Optimisers that are not torch's own, and LBFGS, may move parameters without a gradient (a
    lookahead does): what is frozen is copied before each of their steps, and put back.

    The memory it takes is that of one gradient from the end of the first task on, g_{t-1}, and with
    reference="start" that of g_t besides while a task trains. It is part of a checkpoint.

    Raises:
        ValueError: an argument out of range, at construction; a plugin of Avalanche that does not
            go together with frozen parameters (MIR, RWalk), before training; modules, heads or
            numbers that do not fit the model, a model without a trainable parameter outside its
            heads, a stream without boundaries and no `decide_every`, samples that make no batch, a
            gradient to be measured before lazy layers have their shapes: before the first
            iteration. With mode="adaptive", another plugin changes minibatches or outputs on its
            events: before the first step.
        FloatingPointError: what is not finite (on_nonfinite="raise"), before the optimiser's step;
            running statistics have seen the minibatch by then.
    """

    # Of checkpoints that are older.
    probe_head: ProbeHead = "own"
    _behind: Chosen | None = None  # the head that gradients are taken behind; None: not yet known
    magnitude_decay = low_magnitude = 0.0
    magnitude: Magnitude | None = None
    head_epochs = 0
    _heads_now: Sequence[str] = ()
    _head_is_new = False  # whether the task at hand has a head that has not trained
    _ended = 0

    def __init__(
        self,
        mode: Mode = "adaptive",
        *,
        threshold: float = 0.0,
        low: int = 1,
        high: int | None = None,
        schedule: Schedule = "hard",
        granularity: Granularity = "model",
        modules: Modules = None,
        heads: Heads = None,
        metric: Metric = "cosine",
        reference: Reference = "end",
        probe_head: ProbeHead = "auto",
        probe_batches: int = 8,
        magnitude_decay: float | None = None,
        low_magnitude: float = 0.0,
        magnitude: Magnitude | None = None,
        head_epochs: int = 0,
        decide_every: int | None = None,
        seed: int | None = None,
        on_nonfinite: OnNonFinite = "raise",
    ) -> None:
        super().__init__(
            mode,
            threshold=threshold,
            low=low,
            high=high,
            schedule=schedule,
            granularity=granularity,
            modules=modules,
            heads=heads,
            metric=metric,
            probe_batches=probe_batches,
            magnitude_decay=magnitude_decay,
            low_magnitude=low_magnitude,
            magnitude=magnitude,
            seed=seed,
        )
        self.supports_distributed = True
        self._guard = StepGuard(on_nonfinite)
        self.skipped_probes = 0
        self.reference = one_of("reference", reference, ("end", "start"))
        self.probe_head = cast(ProbeHead, one_of("probe_head", probe_head, _PROBE_HEADS))
        self.head_epochs = positive_int("head_epochs", head_epochs, minimum=0)
        self.decide_every = (
            None if decide_every is None else positive_int("decide_every", decide_every)
        )
        self._trained = ModelReference()  # the model that the decisions were about
        self._boundary = Boundary(known=True, starts=True, ends=True)
        self._is_new = False  # whether the experience has not begun to train
        self._waits = False  # with the freezing, for an epoch to begin
        self._begin()

    def _begin(self) -> None:
        self.last_decision = None
        self._is_first = True  # whether no task has ended
        self._earlier = {}
        self._now: dict[str, Tensor] = {}  # g_t, where the next task compares with it
        # The data of a task of which is not known whether it has ended, and its collate function.
        self._open: tuple[Any, Collate | None] | None = None
        self._behind = None
        self._iterations = 0  # since the last decision
        self._ended = 0
        self._factors = {}
        self._trained_heads = TrainedHeads()

    @property
    def _freezes(self) -> bool:
        return not self._trains_all or self.head_epochs > 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**_newer_state(), **state})

    def before_training(self, strategy: Strategy, **kwargs: Any) -> None:
        """Thaw what an interrupted training left frozen; begin anew in a new strategy."""
        if self._freezes:
            refuse_beside_frozen(strategy, self)
            refuse_beside_cwr(strategy, self, "chooses among the modules before the last layer")
        forget_epoch(strategy)
        model = unwrapped(strategy.model)
        self._freezer.release(model)
        # Later, it is the same strategy: GDumb and others replace the model between experiences.
        if strategy.clock.train_exp_counter == 0 and self._trained.is_other_than(model):
            self._begin()
        self._trained = ModelReference(model)

    def before_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Measure g_{t-1} where a task turns out to have ended, before heads grow."""
        if self._open is not None and task_boundary(strategy.experience).starts:
            self._end_task(strategy, *self._open)

    def after_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
        """Refuse an experience without samples."""
        require_samples(strategy)

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Check that the arguments fit the model and the stream."""
        require_whole_parameters(strategy.model, "HybridMagnitudePlugin")
        if self._freezes:
            require_unused(strategy.model)
        if self._scales:
            refuse_before_scaling(strategy, self)
        self._is_new, self._waits = True, False
        self._step.drop()
        self._watches = self.heads is None
        self._guard.start(strategy, self, events=())  # what is frozen needs no gradient anyway
        self._boundary = task_boundary(strategy.experience)
        decides = self._scales or not self._trains_all
        if not self._boundary.known and self.decide_every is None and decides:
            raise ValueError(
                "decide_every must be a number of iterations for a stream without task boundaries, "
                "got None"
            )
        if self.head_epochs:
            require_head_epochs(strategy, self.head_epochs, self._boundary)
        if self._boundary.starts or self.last_decision is None:
            self._blocks(unwrapped(strategy.model))
        if self.mode == "adaptive":
            require_positions(strategy, "HybridMagnitudePlugin")
            watch_minibatch(strategy)
            if self._boundary.starts or self.last_decision is None:
                self._check_probe(strategy)

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        """Decide where a task starts; what does not train is frozen when the epoch begins."""
        is_new, self._is_new = self._is_new, False
        starts = self._boundary.known and self._boundary.starts and is_new
        if starts or self.last_decision is None or self._is_due():
            self._decide(strategy)
        if is_new and self.head_epochs:
            self._heads_now = self._head_modules(strategy)
            self._head_is_new = starts and self._trained_heads.has_new(strategy, self._heads_now)
        self._waits = True
        when_the_epoch_begins(strategy, self._epoch_begins)

    def before_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """See to it that what is frozen stays so."""
        self._epoch_begins(strategy)
        self._freezer.keep(unwrapped(strategy.model))
        self._guard.open(strategy)

    def before_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        """See to it that what is frozen stays so, whoever called model.train() since."""
        model = unwrapped(strategy.model)
        self._freezer.keep(model)
        if self._watches:
            self._heads_seen.open(gateable_layers(model))

    def after_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        """See in the first output of an experience which layers are its heads."""
        if self._watches:
            self._heads_seen.close(strategy.mb_output)
            self._watches = False

    def after_backward(self, strategy: Strategy, **kwargs: Any) -> None:
        """Note the loss."""
        self._guard.add_loss(strategy)

    def before_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """Skip a step that is not finite; hold what is frozen where the optimiser may move it."""
        self._guard.watch(strategy)
        self._guard.allows(strategy)
        self._begin_step(strategy)
        if self.head_epochs:
            self._trained_heads.note(unwrapped(strategy.model), self._heads_now)

    def after_update(self, strategy: Strategy, **kwargs: Any) -> None:
        """End the step."""
        self._step.end()
        self._guard.close()

    def release_hooks(self) -> None:
        """Take off what a step that an error has ended has left."""
        super().release_hooks()
        self._heads_seen.close()
        self._step.drop()

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        """Decide in the midst of an epoch, where a stream has no task boundaries."""
        self._iterations += 1
        # Here and not before an iteration, so that all plugins see the same parameters in one.
        if self._is_due() and _epoch_goes_on(strategy):
            named = unwrapped(strategy.model).named_parameters()
            frozen = [name for name, parameter in named if not parameter.requires_grad]
            self._decide(strategy)
            self._freeze(strategy)
            show_gradients(unwrapped(strategy.model), frozen)

    def after_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        """Thaw: any epoch may be the last, and whatever ends a task needs the whole model."""
        model = unwrapped(strategy.model)
        self._freezer.keep(model)
        self._freezer.pause(model)

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        """Measure g_{t-1} at the end of a task (reference="end")."""
        model = unwrapped(strategy.model)
        self._freezer.keep(model)
        self.thaw(model)
        dataset = strategy.experience.dataset
        collate = collate_of(strategy.dataloader, dataset)
        # Not before: all decisions of a task are about the same modules.
        self._heads_known = self._heads_seen.found
        if self._boundary.ends:
            self._end_task(strategy, dataset, collate)
        elif self._boundary.known:
            self._open = (dataset, collate) if self._measures_ends else (None, None)

    @property
    def _measures_ends(self) -> bool:
        return self.mode == "adaptive" and self.reference == "end"

    def _end_task(self, strategy: Strategy, dataset: Any, collate: Collate | None) -> None:
        """Replace g_{t-1}, and not before: a task that was interrupted may be trained again."""
        earlier = self._now
        if self._measures_ends:
            blocks = self._blocks(unwrapped(strategy.model))
            earlier = self._gradient(strategy, dataset, blocks, collate)
        self._earlier, self._now = earlier, {}
        self._open, self._is_first = None, False
        self._ended += 1
        self._trained_heads.end_task()

    def _check_probe(self, strategy: Strategy) -> None:
        """Refuse what would fail at the first gradient."""
        at_start = self.reference == "start" or not self._boundary.known
        waiting = uninitialized(unwrapped(strategy.model))
        if waiting and at_start and self._is_first:
            reference = "reference='start'" if self._boundary.known else "decide_every"
            raise ValueError(
                f"{reference} measures a gradient before the first forward pass, which "
                f"{waiting[0]} of a lazy layer waits for: run a batch through the model first"
            )
        try_probe(strategy)
        if not waiting:
            self._heads_behind(strategy)

    def _heads_behind(self, strategy: Strategy) -> list[str] | None:
        """Return the heads in whose place another is fitted; None: gradients are behind these."""
        heads = self._head_modules(strategy)
        if self._behind is None:  # once, since two gradients compare behind one kind of head
            self._behind = first_of_all(choose_head(strategy, self.probe_head, heads))
        return heads if self._behind == "ridge" else None

    def _head_modules(self, strategy: Strategy) -> list[str]:
        return find_heads(unwrapped(strategy.model), self.heads, self._heads_known)

    def _is_due(self) -> bool:
        every = self.decide_every
        return not self._boundary.known and every is not None and self._iterations >= every

    def _decide(self, strategy: Strategy) -> None:
        self.thaw(unwrapped(strategy.model))
        blocks = self._blocks(unwrapped(strategy.model))
        at_start = self.reference == "start" or not self._boundary.known
        gradient: dict[str, Tensor] = {}
        if self.mode == "adaptive" and (at_start or self._earlier):
            gradient = self._gradient(strategy, strategy.experience.dataset, blocks)
        is_first = self._is_first if self._boundary.known else self.last_decision is None
        decision = self._decision(blocks, gradient, self._behind, is_first=is_first)
        self.last_decision = first_of_all(decision)
        self._factors = self._factors_of(self.last_decision, blocks)
        _LOG.info("hybrid magnitude: %s", self.last_decision)
        if self._boundary.known:
            self._now = gradient if at_start else {}
        else:
            self._earlier = gradient
            self._ended += 1
        self._iterations = 0

    def _epoch_begins(self, strategy: Strategy) -> None:
        if self._waits:
            self._freeze(strategy)

    def _freeze(self, strategy: Strategy) -> None:
        """Freeze what the last decision left out, or all; a module that came since trains."""
        self._waits = False
        decision = self.last_decision
        assert decision is not None
        heads_alone = self._head_is_new and strategy.clock.train_exp_epochs < self.head_epochs
        frozen = set(decision.modules) if heads_alone else self._left_out(decision)
        if frozen:
            model = unwrapped(strategy.model)
            forget_steps(strategy, self._freeze_modules(model, frozen, self._blocks(model)))

    def _gradient(
        self, strategy: Strategy, dataset: Any, blocks: Blocks, collate: Collate | None = None
    ) -> dict[str, Tensor]:
        names, heads = probed_names(blocks), self._heads_behind(strategy)
        gradient = self._probe.gradient(strategy, dataset, names, collate, heads=heads)
        reason = why_not_finite(gradient, strategy)
        if reason is None:
            return gradient
        if self.on_nonfinite == "raise":
            raise FloatingPointError(f"{reason} (on_nonfinite='skip' lets everything train then)")
        self.skipped_probes += 1
        return {}


def _newer_state() -> dict[str, Any]:
    """Return what a plugin of an older checkpoint has not got."""
    return {"_factors": {}, "_step": ShapedStep(), "_trained_heads": TrainedHeads()}


def _epoch_goes_on(strategy: Strategy) -> bool:
    """Whether a minibatch follows; if not, the next epoch's start can decide."""
    return bool(strategy.clock.train_epoch_iterations + 1 < len(strategy.dataloader))
