"""The gate of MIGU: which rows of a model's layers may move in a step, and what holds the others.

The core under the plugin for Avalanche and the callback for the Hugging Face Trainer. Source: MIGU
(arXiv 2406.17245, eq. 3-6).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import as_list, flag, one_of, positive_int
from avalanche_mgem.model.account import MOST_LEFT_OUT, Account, account
from avalanche_mgem.model.distributed import n_processes
from avalanche_mgem.model.fused import Fused, check_fused
from avalanche_mgem.model.heads import Heads, HeadWatch
from avalanche_mgem.model.holding import kept_rows_of, mask_gradients
from avalanche_mgem.model.kept_gradients import KeptGradients
from avalanche_mgem.model.layers import (
    find_gated_layers,
    find_heads,
    gateable_layers,
    resolve_gated_layers,
)
from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.magnitudes import (
    MagnitudeRecorder,
    gradient_scores,
    random_scores,
    share_scores,
    weight_scores,
    without_unseen,
)
from avalanche_mgem.model.optimizers import moves_by_gradient_alone
from avalanche_mgem.model.padding import TokenMask, is_encoder_decoder, token_masks
from avalanche_mgem.model.step_hold import StepHold, hold_rows
from avalanche_mgem.model.targets import TargetModules, check_target_modules, inside
from avalanche_mgem.model.uncalled import as_product, can_be_product
from avalanche_mgem.model.units import GatedLayer
from avalanche_mgem.restriction.rows import Normalize, kept_rows_of_layers, n_masked, refuse_nan

Score = Literal["output", "gradient", "weight", "random"]
Freeze = Literal["gradient", "update"]
Ungated = Literal["train", "freeze"]

_LOG = logging.getLogger(__name__)


class RowGate:
    """Chooses the rows that may move in a step, and holds the others still.

        gate.find(model)                  # once an experience: layers may have come
        gate.open(model, batch)           # around every forward pass of the step
        ...
        gate.close()
        gate.mask(model)                  # after the backward pass
        gate.hold(model, optimizer)       # around the optimiser's step
        ...
        gate.release()
        gate.reset()                      # the next forward pass begins another step

    Several forward passes before one step, as when gradients are accumulated, add up. Beyond a step
    it keeps the names of layers, not the layers, and it has no hook anywhere but between the calls
    that open and close; a copy or a pickle has neither.

    Several processes that train one model choose the same rows: by the outputs of all of them, or
    by the first one's scores of another kind. So all must call the gate alike.

    Args: as those of `avalanche_mgem.MIGUPlugin`.

    Attributes:
        names: of the gated layers.
        last_scores: of the last step, float32 [n] by layer, or [*blocks, n]; None before the first.
        last_mask: which rows the last step might move, bool of the same shapes; None where it was
            free.
        last_path: how the gradients of the last step that masked rows were made, "fused" or
            "masked: " and the reason, by layer; None before the first.
        passes: how many forward passes this step has had.
        draws: how many steps have drawn their rows (score="random").
    """

    _hooks_are_enough = False  # to hold rows: seen in a step of this experience
    last_path: dict[str, str] | None = None

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
        seed: int | None = None,
    ) -> None:
        n_masked(mask_fraction, 1)  # refuses what is no fraction
        self.mask_fraction = float(mask_fraction)
        self.target_modules = _own_names("target_modules", target_modules)
        check_target_modules(self.target_modules)
        self.heads = cast(Heads, _own_names("heads", heads))
        self.fused = check_fused(fused)
        self.score = one_of("score", score, ("output", "gradient", "weight", "random"))
        self.freeze = one_of("freeze", freeze, ("gradient", "update"))
        self.ungated = one_of("ungated", ungated, ("train", "freeze"))
        self.ignore_padding = flag("ignore_padding", ignore_padding)
        if seed is not None:
            positive_int("seed", seed, minimum=0)
        self.seed = torch.initial_seed() if seed is None else int(seed)
        self.names: list[str] = []
        self.last_scores: dict[str, Tensor] | None = None
        self.last_mask: dict[str, Tensor] | None = None
        self._recorder = MagnitudeRecorder(normalize)
        self._kept_gradients = KeptGradients()
        self.passes = 0
        self._mistrusts = False  # those who say that a step has one
        self.last_account: Account | None = None
        self._head_names: list[str] = []
        self._heads = HeadWatch()
        self._by_product: set[str] = set()  # layers that are not called: their weights are used
        self._candidates: list[str] = []  # the gated layers, and what may turn out to be no head
        self._heads_unseen = False  # whether the next forward pass is to show them
        self._warned = False
        self._lost: list[str] = []  # layers of which was said that they are not seen
        self._encoder_decoder = False
        self._kept: dict[str, Tensor] | None = None
        self._over = False  # whether the step is, so that its scores are to be forgotten
        self._hold: StepHold | None = None
        self._resolved: list[GatedLayer] | None = None  # the layers of these names, for a step
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []  # gradients of what is ungated
        self.draws = 0

    def __getstate__(self) -> dict[str, object]:
        own: dict[str, object] = {"_hold": None, "_resolved": None, "_hidden": []}
        return {**vars(self), **own, "_kept_gradients": KeptGradients()}

    def __setstate__(self, state: dict[str, object]) -> None:
        added = {"_kept_gradients": KeptGradients(), "passes": 0, "_mistrusts": False}
        vars(self).update({**added, **state})  # of a checkpoint that is older

    def find(self, model: nn.Module) -> None:
        """Find the gated layers of `model`.

        Those that are frozen now are gated from the next `find` on.

        Raises:
            ValueError: what `find_gated_layers` raises; a compiled model whose outputs are wanted.
        """
        self.drop()
        self.close()
        self._hooks_are_enough = False
        if self.score == "output":
            _refuse_compiled(model)
        self._choose(model)
        self._encoder_decoder = is_encoder_decoder(model)
        self.last_scores = self.last_mask = self.last_path = self._kept = None
        self._recorder.reset()
        self._kept_gradients, self.passes, self._mistrusts = KeptGradients(), 0, False
        self._resolved, self._hidden = None, []

    def _choose(self, model: nn.Module) -> None:
        """Take the gated layers by what is known of the heads, and account for the rest."""
        seen = self._heads.found
        layers = find_gated_layers(
            model, self.target_modules, heads=self.heads, seen_heads=seen, fused=self.fused
        )
        self.names = [layer.name for layer in layers]
        self._heads_unseen = self.heads is None
        # Whatever may turn out to be no head is recorded too, so that the first step masks it.
        self._candidates = self.names
        if self._heads_unseen:
            every = find_gated_layers(model, self.target_modules, heads=(), fused=self.fused)
            self._candidates = [layer.name for layer in every]
        self._head_names = find_heads(model, self.heads, seen)
        self._account_for(model, layers, warn=self.heads is not None)

    def _see_heads(self, model: nn.Module) -> None:
        """Choose anew among the candidates where a forward pass has shown other heads.

        What another plugin has frozen since stays among them.
        """
        self._heads_unseen = False
        heads = find_heads(model, None, self._heads.found)
        found = [n for n in self._candidates if not any(inside(n, head) for head in heads)]
        if found:
            self.names, self._head_names, self._resolved = found, heads, None
        self._account_for(model, self._layers(model), warn=True)

    def _account_for(self, model: nn.Module, layers: list[GatedLayer], *, warn: bool) -> None:
        graph = "names" if self._heads.found is None else "graph"
        source = graph if self.heads is None else "given"
        self.last_account = account(model, layers, self._head_names, source)
        _LOG.info("gate: %s", self.last_account)
        if warn and self.target_modules is None and not self._warned:
            self._warned = _warn_of_left_out(self.last_account)

    def begin(self) -> None:
        """Choose anew, with the scores so far or, after a step's end, without them."""
        self._kept = None
        if self._over:
            self._recorder.reset()
            self._kept_gradients.begin()
            self._over, self._resolved, self.passes = False, None, 0

    def open(
        self, model: nn.Module, batch: object = None, *, whole: str = "whole gradients are read"
    ) -> None:
        """Record the layers' outputs until `close`, or until the forward pass fails.

        Args:
            model: as always.
            batch: the input of the model, a mapping that has an attention mask where padding is to
                be ignored; ValueError where it has none.
            whole: why the gradients of masked rows must be computed too. "": they need not, which
                says that this forward pass is the only one of the step, that rows are masked in
                it, and that nobody reads gradients before `mask`. See
                `avalanche_mgem.model.kept_gradients`.
        """
        self.begin()
        if self.passes > 0:
            self._go_on()
        self.passes += 1
        layers = self._layers(model)
        if self._heads_unseen:
            found = resolve_gated_layers(model, self._candidates, fused=self.fused)
            layers = self._as_seen(model, found)
        self._kept_gradients.open(layers, self.mask_fraction, self._why_whole(whole))
        if self.score == "output":
            masks = self._token_masks(batch) if self.ignore_padding else None
            self._recorder.open(
                layers,
                token_mask=masks,
                guard=model,
                on_error=self._heads.close,
                replace=self._kept_gradients.output,
            )
        if self._heads_unseen:
            self._heads.open(gateable_layers(model))  # last: it sees what the model goes on with

    def _why_whole(self, reason: str) -> str:
        if self.mask_fraction == 0:
            return "nothing is masked"
        if self.score != "output":
            return f"score={self.score!r}"
        if n_processes() > 1:
            return "the scores are those of several processes"
        further = "several forward passes before one mask"
        return reason or (further if self._mistrusts or self.passes > 1 else "")

    def _go_on(self) -> None:
        """Compute whole gradients in a step that has another forward pass."""
        used = self._kept_gradients.abandon("several forward passes before one mask")
        if used and not self._mistrusts:
            self._mistrusts = True
            warnings.warn(
                "a second forward pass began after a backward pass of the same step: the rows of "
                "this step are those of its first; all later ones are chosen by all passes",
                stacklevel=3,
            )

    def close(self, model: nn.Module | None = None, output: object = None) -> None:
        """End what `open` began; with the model and its output, learn which layers are heads.

        Without the model, as after an error, all gradients are computed whole.
        """
        self._recorder.close()
        watched = self._heads.is_open
        self._heads.close(output)
        if model is not None and watched and self._heads_unseen:
            self._see_heads(model)
        self._decide(model is not None)

    def _decide(self, is_over: bool) -> None:
        """Choose the rows of the layers that compute the gradients of kept rows alone."""
        if names := self._kept_gradients.undecided():
            scores = self._recorder.scores() if is_over else {}
            gated = {*names} & {*self.names}  # not what has turned out to be a head
            own = {name: scores[name] for name in names if name in gated and name in scores}
            kept = kept_rows_of_layers(own, self.mask_fraction, check=False)
            self._kept_gradients.decide(kept)

    def kept(self, model: nn.Module) -> dict[str, Tensor]:
        """Return which rows may move in this step, bool [n] by layer, or [*blocks, n].

        It is the same until the next step begins. Of an expert that saw no token, none may.

        A layer that has no score, because no output of it was seen, is not there.

        Raises:
            FloatingPointError: a score is NaN.
        """
        if self._kept is None:
            self.look(model)
            scores, decided = self.last_scores, self._kept_gradients.decided
            assert scores is not None
            refuse_nan({name: scores[name] for name in decided}, self.mask_fraction)
            others = {name: score for name, score in scores.items() if name not in decided}
            found = kept_rows_of_layers(others, self.mask_fraction)
            chosen = {**found, **decided}
            self._kept = {name: chosen[name] for name in scores}
            self.last_mask = self._kept
        return self._kept

    def look(self, model: nn.Module) -> None:
        """Take the scores of this step, without choosing by them: all rows may move.

        Raises:
            RuntimeError: score="output", and no output of a gated layer was seen in this step,
                though none is frozen: those that are may be the ones that are called.
        """
        self.last_scores, self.last_mask = self._scores(model), None
        layers = self._layers(model)
        if self.score == "output" and self.last_scores:
            self._see_uncalled([each for each in layers if each.name not in self.last_scores])
        all_train = len(layers) == len(self.names)
        if self.score == "output" and layers and all_train and not self.last_scores:
            known = ", ".join(layer.name for layer in layers)
            raise RuntimeError(
                "no output of a gated layer was seen in this step: the loss was computed around "
                f"the model's own call, or the model is compiled (layers: {known})"
            )

    def _see_uncalled(self, layers: list[GatedLayer]) -> None:
        """Look for products with the weights of layers that train and were not called.

        Where none was found either, raise RuntimeError if they were named, or else warn.
        """
        uncalled = [layer for layer in layers if _is_trained_now(layer)]
        new = [each.name for each in uncalled if can_be_product(each) and not self._tried(each)]
        self._by_product.update(new)
        self._resolved = None if new else self._resolved
        lost = [each.name for each in uncalled if each.name not in new]
        if not lost:
            return
        said = (
            f"{len(lost)} gated layers have a gradient, and their outputs are not seen, because "
            f"their forward is never called: {', '.join(lost[:4])}{', ...' if lost[4:] else ''}"
        )
        if self.target_modules is not None:
            raise RuntimeError(f"{said}; leave them out of target_modules, or use another score")
        if self._lost != lost:
            self._lost = lost
            warnings.warn(f"{said}; they train freely", stacklevel=3)

    def _as_seen(self, model: nn.Module, layers: list[GatedLayer]) -> list[GatedLayer]:
        return [as_product(model, each) if self._tried(each) else each for each in layers]

    def _tried(self, layer: GatedLayer) -> bool:
        return layer.name in self._by_product

    def mask(self, model: nn.Module) -> None:
        """Make the gradients zero of the rows that may not move; None stays None."""
        kept = self.kept(model)
        layers = self._layers(model)
        if self.mask_fraction > 0:
            whole = [each for each in layers if not self._kept_gradients.is_masked(each)]
            self.last_path = self._kept_gradients.settle(layers)
            mask_gradients(whole, kept)
        if self.ungated == "freeze":
            for _, parameter in self._ungated(model):
                # No optimiser touches what has no gradient, nor its state.
                if parameter.grad is not None:
                    self._hidden.append((parameter, parameter.grad))
                    parameter.grad = None

    def hold(self, model: nn.Module, *optimizers: Any) -> None:
        """Until `release`, let no step of the optimisers move these rows (freeze="update").

        Nor what is ungated (ungated="freeze"), which most optimisers leave alone without a
        gradient.
        """
        self.drop()
        rows = self.freeze == "update" and self.mask_fraction > 0
        hides = self.ungated == "freeze" and not all(map(moves_by_gradient_alone, optimizers))
        if rows or hides:
            ungated = [p for _, p in self._ungated(model) if p.requires_grad] if hides else []
            if hides:
                # A step in two parts, as SAM's, expects a gradient in the first where there is one
                # in the second; what moves by one of zeros is put back.
                self._hidden = [(each, _zeroed(each, known)) for each, known in self._hidden]
            self._hold = hold_rows(
                optimizers,
                self._layers(model) if rows else (),
                self.kept(model),
                still=ungated,
                copy=not self._hooks_are_enough,
            )

    def unhide(self) -> None:
        """Give what is ungated its gradients back after the step (ungated="freeze").

        Avalanche's synaptic intelligence reads the gradient of everything that requires one.
        """
        hidden, self._hidden = self._hidden, []
        for parameter, gradient in hidden:
            if parameter.grad is None or not parameter.grad.any():
                parameter.grad = gradient

    def release(self) -> None:
        """End what `hold` began, after the step: what has moved all the same is put back."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self._hooks_are_enough = hold.end()

    def drop(self) -> None:
        """End what `hold` began, after an error or without a step: nothing is put back."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.remove()

    def reset(self) -> None:
        """End the step: the next forward pass begins another, without the scores of this one."""
        self._over, self._resolved, self._hidden = True, None, []

    def held_rows(self, model: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        """Yield what may not move in this step: a parameter's name, its rows' dimensions, bool.

        The mask has these dimensions' sizes, and the rows that are held are True.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for rows in kept_rows_of(self._layers(model), self.kept(model)):
            yield names[id(rows.parameter)], rows.slices.dims, ~rows.kept

    def held_parameters(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that may not move as a whole (ungated="freeze")."""
        return [] if self.ungated == "train" else [name for name, _ in self._ungated(model)]

    def _token_masks(self, batch: object) -> TokenMask:
        masks: TokenMask = None
        has = f"a {type(batch).__name__}"
        if isinstance(batch, Mapping):
            masks = token_masks(batch, encoder_decoder=self._encoder_decoder)
            has = ", ".join(str(name) for name in batch)
        if masks is None:
            raise ValueError(
                "ignore_padding=True needs a model that is called with a mapping that has an "
                f"attention_mask [N, L], got {has}"
            )
        return masks

    def _layers(self, model: nn.Module) -> list[GatedLayer]:
        if self._resolved is None:
            found = resolve_gated_layers(model, self.names, fused=self.fused)
            self._resolved = self._as_seen(model, found)
        return self._resolved

    def _scores(self, model: nn.Module) -> dict[str, Tensor]:
        # A lazy layer that no forward pass has reached has no rows yet.
        layers = [
            layer
            for layer in self._layers(model)
            if not any(is_lazy(rows.parameter) for rows in layer.rows)
        ]
        if self.score == "output":
            scores = self._recorder.scores_of_all(layers)
            return {layer.name: scores[layer.name] for layer in layers if layer.name in scores}
        if self.score == "weight":
            scores = weight_scores(layers)
        elif self.score == "gradient":
            # Under a GradScaler gradients may overflow; then the step is left out, masked or not.
            scores = {name: s.nan_to_num() for name, s in gradient_scores(layers).items()}
        else:
            scores = random_scores(layers, self._generator())
        return share_scores(without_unseen(scores, layers))

    def _generator(self) -> torch.Generator:
        # A generator of torch's cannot be pickled: each step has one of its own instead.
        sequence = np.random.SeedSequence([self.seed, self.draws])
        self.draws += 1
        return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))

    def _ungated(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is neither a row of a gated layer nor in an output head."""
        trained = {id(rows.parameter) for layer in self._layers(model) for rows in layer.rows}
        # By identity: what a head shares, as a tied embedding, goes by the other module's name.
        for name, module in model.named_modules():
            if any(inside(name, head) for head in self._head_names):
                trained |= {id(parameter) for parameter in module.parameters(recurse=False)}
        for name, parameter in model.named_parameters():
            if id(parameter) not in trained:
                yield name, parameter


class ShowsGate:
    """What a plugin or a callback shows of the gate in it."""

    _gate: RowGate

    @property
    def last_account(self) -> Account | None:
        """What of the model is gated, what is not, and what its heads are; None before training."""
        return self._gate.last_account

    @property
    def mask_fraction(self) -> float:
        """The fraction of the rows that is held still."""
        return self._gate.mask_fraction

    @property
    def last_mask(self) -> dict[str, Tensor] | None:
        """Which rows the last step might move; None where all might."""
        return self._gate.last_mask

    @property
    def last_path(self) -> dict[str, str] | None:
        """How the gradients of the last step that masked rows were made, by layer; None: none did.

        "fused": those of masked rows were not computed, which makes a step faster. "masked: " and
        the reason why not: all were, and then masked.
        """
        return self._gate.last_path

    @property
    def last_scores(self) -> dict[str, Tensor] | None:
        """The scores of the last step."""
        return self._gate.last_scores


def _is_trained_now(layer: GatedLayer) -> bool:
    """Whether the last backward pass has reached a layer."""
    gradients = [rows.parameter.grad for rows in layer.rows]
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def _zeroed(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Put zeros for a gradient that was taken away, and return that."""
    parameter.grad = torch.zeros_like(gradient)
    return gradient


def _warn_of_left_out(found: Account) -> bool:
    """Warn where much of a model trains freely; return whether it does."""
    much = found.share_left_out > MOST_LEFT_OUT
    if much:
        warnings.warn(
            f"{found.share_left_out:.0%} of the model's trainable parameters are in layers that "
            "MIGU does not gate and that are no heads, embeddings or norms; they train freely: "
            f"{found.describe_left_out()}",
            stacklevel=2,
        )
    return much


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        # An OptimizedModule is what torch.compile returns; `compile()` marks the module itself.
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule":
            raise ValueError(
                f"model is compiled ({name or 'as a whole'}), and what is compiled does not always "
                "call the hooks that record outputs: use score='output' without compiling, or "
                "another score"
            )


def _own_names(argument: str, names: TargetModules) -> TargetModules:
    """Return names that no caller can change any more."""
    if names is None or isinstance(names, str):
        return names
    return tuple(as_list(argument, names, str, what="None, a string or a list of names"))
