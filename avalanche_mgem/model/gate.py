"""The gate of MIGU: which rows of a model's layers may move in a step, and what holds the others.

The core under the plugin for Avalanche and the callback for the Hugging Face Trainer. Source: MIGU
(arXiv 2406.17245, eq. 3-6).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import flag, one_of, positive_int
from avalanche_mgem.model.account import Account
from avalanche_mgem.model.distributed import n_processes
from avalanche_mgem.model.fused import Fused
from avalanche_mgem.model.gate_hold import GateHold
from avalanche_mgem.model.gate_layers import GateLayers, refuse_compiled
from avalanche_mgem.model.heads import Heads
from avalanche_mgem.model.holding import kept_rows_of, mask_gradients
from avalanche_mgem.model.kept_gradients import KeptGradients
from avalanche_mgem.model.lazy import is_lazy
from avalanche_mgem.model.magnitudes import (
    MagnitudeRecorder,
    gradient_scores,
    random_scores,
    share_scores,
    weight_scores,
    without_unseen,
)
from avalanche_mgem.model.padding import TokenMask, is_encoder_decoder, token_masks
from avalanche_mgem.model.targets import TargetModules
from avalanche_mgem.restriction.rows import Normalize, kept_rows_of_layers, n_masked, refuse_nan

Score = Literal["output", "gradient", "weight", "random"]
Freeze = Literal["gradient", "update"]
Ungated = Literal["train", "freeze"]


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

    Several forward passes before one step, as when gradients are accumulated, add up. Beyond an
    experience, which `forget` ends, it keeps the names of layers, not the layers, and it has no
    hook anywhere but between the calls that open and close; a copy or a pickle has neither.

    Several processes that train one model choose the same rows: by the outputs of all of them, or
    by the first one's scores of another kind. So all must call the gate alike.

    Args: as those of `avalanche_mgem.MIGUPlugin`.

    Attributes:
        names: of the gated layers.
        last_scores: of the last step, float32 [n] by layer, or [*blocks, n]; None before the first.
        last_mask: which rows the last step might move, bool of the same shapes; None where it was
            free.
        last_path: how the gradients of the last step that masked rows were made, "fused", or
            "zeroed: " or "masked: " and the reason, by layer; None before the first.
        passes: how many forward passes this step has had.
        draws: how many steps have drawn their rows (score="random").
    """

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
        self._of = GateLayers(target_modules, heads, fused)
        self.score = one_of("score", score, ("output", "gradient", "weight", "random"))
        self.freeze = one_of("freeze", freeze, ("gradient", "update"))
        self.ungated = one_of("ungated", ungated, ("train", "freeze"))
        self.ignore_padding = flag("ignore_padding", ignore_padding)
        if seed is not None:
            positive_int("seed", seed, minimum=0)
        self.seed = torch.initial_seed() if seed is None else int(seed)
        self.last_scores: dict[str, Tensor] | None = None
        self.last_mask: dict[str, Tensor] | None = None
        self._recorder = MagnitudeRecorder(normalize)
        self._kept_gradients = KeptGradients()
        self.passes = 0
        self._mistrusts = False  # those who say that a step has one
        self._encoder_decoder = False
        self._kept: dict[str, Tensor] | None = None
        self._over = False  # whether the step is, so that its scores are to be forgotten
        self._hold = GateHold()
        self.draws = 0

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_kept_gradients": KeptGradients()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_of" not in state:  # of a checkpoint that is older
            added = {"_kept_gradients": KeptGradients(), "passes": 0, "_mistrusts": False}
            state = {**added, **state, "_of": GateLayers.of_older(state), "_hold": GateHold()}
        vars(self).update(state)

    @property
    def names(self) -> list[str]:
        """The names of the gated layers."""
        return self._of.names

    @property
    def target_modules(self) -> TargetModules:
        """As the argument."""
        return self._of.target_modules

    @property
    def heads(self) -> Heads:
        """As the argument."""
        return self._of.heads

    @property
    def fused(self) -> Fused:
        """As the argument."""
        return self._of.fused

    @property
    def last_account(self) -> Account | None:
        """What of the model is gated, and what is not; None before the first `find`."""
        return self._of.last_account

    def find(self, model: nn.Module) -> None:
        """Find the gated layers of `model`.

        Those that are frozen now are gated from the next `find` on.

        Raises:
            ValueError: what `find_gated_layers` raises; a compiled model whose outputs are wanted.
        """
        self.close()
        if self.score == "output":
            refuse_compiled(model)
        self._hold.reset()
        self._of.find(model)
        self._encoder_decoder = is_encoder_decoder(model)
        self.last_scores = self.last_mask = self.last_path = self._kept = None
        self._recorder.reset()
        self._kept_gradients, self.passes, self._mistrusts = KeptGradients(), 0, False

    def forget(self) -> None:
        """End the experience: let go of the model."""
        self._of.forget()
        self._kept_gradients = KeptGradients()

    def begin(self) -> None:
        """Choose anew, with the scores so far or, after a step's end, without them."""
        self._kept = None
        if self._over:
            self._recorder.reset()
            self._kept_gradients.begin()
            self._over, self.passes = False, 0
            self._of.end_step()

    def open(
        self,
        model: nn.Module,
        batch: object = None,
        *,
        whole: str = "whole gradients are read",
        takes_norms: bool = False,
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
            takes_norms: whether `norms` is asked for.
        """
        self.begin()
        if self.passes > 0:
            self._go_on()
        self.passes += 1
        layers = self._of.to_record(model)
        reason = self._why_whole(whole)
        self._kept_gradients.open(layers, self.mask_fraction, reason, takes_norms=takes_norms)
        if self.score == "output":
            masks = self._token_masks(batch) if self.ignore_padding else None
            self._recorder.open(
                layers,
                token_mask=masks,
                guard=model,
                on_error=self._of.close,
                replace=self._kept_gradients.output,
            )
        self._of.watch(model)  # last: it sees what the model goes on with

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
        self._of.close(model, output)
        self._decide(model is not None)

    def _decide(self, is_over: bool) -> None:
        """Choose the rows of the layers that compute the gradients of kept rows alone."""
        if names := self._kept_gradients.undecided():
            scores = self._recorder.scores() if is_over else {}
            gated = {*names} & {*self.names}  # not what has turned out to be a head
            own = {name: scores[name] for name in names if name in gated and name in scores}
            try:
                kept = kept_rows_of_layers(own, self.mask_fraction, check=False)
            except FloatingPointError:
                kept = {}  # `kept` will say so
            self._kept_gradients.decide(kept)

    def norms(self, model: nn.Module) -> dict[int, tuple[Tensor, ...]]:
        """Return those of what gradients are products of, see `KeptGradients.norms`."""
        return self._kept_gradients.norms(self._of.of(model))

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
            if any(score.device.type != "cpu" for score in scores.values()):
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
        layers = self._of.of(model)
        if self.score == "output" and self.last_scores:
            self._of.see_uncalled([each for each in layers if each.name not in self.last_scores])
        all_train = len(layers) == len(self.names)
        if self.score == "output" and layers and all_train and not self.last_scores:
            known = ", ".join(layer.name for layer in layers)
            raise RuntimeError(
                "no output of a gated layer was seen in this step: the loss was computed around "
                f"the model's own call, or the model is compiled (layers: {known})"
            )

    def mask(self, model: nn.Module) -> None:
        """Make the gradients zero of the rows that may not move; None stays None."""
        kept = self.kept(model)
        layers = self._of.of(model)
        if self.mask_fraction > 0:
            whole = [each for each in layers if not self._kept_gradients.is_masked(each)]
            self.last_path = self._kept_gradients.settle(layers)
            mask_gradients(whole, kept)
        if self.ungated == "freeze":
            self._hold.hide(self._of.ungated(model))

    @property
    def holds(self) -> bool:
        """Whether `hold` does anything."""
        return self.ungated == "freeze" or (self.freeze == "update" and self.mask_fraction > 0)

    def hold(self, model: nn.Module, *optimizers: Any) -> None:
        """Until `release`, let no step of the optimisers move these rows (freeze="update").

        Nor what is ungated (ungated="freeze"), which most optimisers leave alone without a
        gradient.
        """
        rows = self.freeze == "update" and self.mask_fraction > 0
        layers = self._of.of(model) if rows else []
        still = self._of.ungated(model) if self.ungated == "freeze" else ()
        self._hold.begin(optimizers, layers, self.kept(model), still)

    def release(self) -> None:
        """End what `hold` began, after the step: what has moved all the same is put back."""
        self._hold.end()

    def unhide(self) -> None:
        """Give what is ungated its gradients back after the step (ungated="freeze")."""
        self._hold.unhide()

    def drop(self) -> None:
        """End what `hold` began, after an error or without a step: nothing is put back."""
        self._hold.drop()

    def reset(self) -> None:
        """End the step: the next forward pass begins another, without the scores of this one."""
        self._over = True
        self._of.end_step()
        self._hold.forget()

    def held_rows(self, model: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        """Yield what may not move in this step: a parameter's name, its rows' dimensions, bool.

        The mask has these dimensions' sizes, and the rows that are held are True.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for rows in kept_rows_of(self._of.of(model), self.kept(model)):
            yield names[id(rows.parameter)], rows.slices.dims, ~rows.kept

    def held_parameters(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that may not move as a whole (ungated="freeze")."""
        return [] if self.ungated == "train" else [name for name, _ in self._of.ungated(model)]

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

    def _scores(self, model: nn.Module) -> dict[str, Tensor]:
        # A lazy layer that no forward pass has reached has no rows yet.
        layers = [
            layer
            for layer in self._of.of(model)
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
