"""Which layers of a model a gate acts on: chosen by name, resolved once an experience."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from avalanche_mgem.arguments import as_list
from avalanche_mgem.model.account import MOST_LEFT_OUT, Account, account
from avalanche_mgem.model.fused import Fused, check_fused
from avalanche_mgem.model.heads import Heads, HeadWatch
from avalanche_mgem.model.layers import (
    find_gated_layers,
    find_heads,
    gateable_layers,
    resolve_gated_layers,
)
from avalanche_mgem.model.resolved import ResolvedLayers
from avalanche_mgem.model.targets import TargetModules, check_target_modules, inside
from avalanche_mgem.model.uncalled import as_product, can_be_product
from avalanche_mgem.model.units import GatedLayer

_LOG = logging.getLogger(__name__)


class GateLayers:
    """The layers of a gate.

        layers.find(model)        # once an experience
        layers.to_record(model)   # around the first forward pass ...
        layers.watch(model)
        ...
        layers.close(model, output)
        layers.of(model)          # in each step
        layers.end_step()

    A copy or a pickle keeps names alone.

    Args: as those of `avalanche_mgem.model.layers.find_gated_layers`.

    Attributes:
        names: of the layers.
        last_account: what of the model is gated and what is not; None before the first `find`.
        heads_unseen: whether the next forward pass is to show the output heads.
    """

    def __init__(self, target_modules: TargetModules, heads: Heads, fused: Fused) -> None:
        self.target_modules = _own_names("target_modules", target_modules)
        check_target_modules(self.target_modules)
        self.heads = cast(Heads, _own_names("heads", heads))
        self.fused = check_fused(fused)
        self.names: list[str] = []
        self.last_account: Account | None = None
        self.heads_unseen = False
        self._head_names: list[str] = []
        self._heads = HeadWatch()
        self._by_product: set[str] = set()  # layers that are not called: their weights are used
        self._candidates: list[str] = []  # the gated layers, and what may turn out to be no head
        self._warned = False
        self._lost: list[str] = []  # layers of which was said that they are not seen
        self._resolved: ResolvedLayers | None = None
        self._is_sure = False  # whether they are known to be those of this step

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_resolved": None}

    @classmethod
    def of_older(cls, state: Mapping[str, Any]) -> GateLayers:
        """Return what is among the attributes of a gate that is older, of a checkpoint."""
        made = cls(state["target_modules"], state["heads"], state["fused"])
        vars(made).update({name: state[name] for name in vars(made) if name in state})
        made.heads_unseen = state["_heads_unseen"]
        made.forget()
        return made

    def find(self, model: nn.Module) -> None:
        """Take the layers by what is known of the heads, and account for the rest."""
        self.forget()
        seen = self._heads.found
        layers = find_gated_layers(
            model, self.target_modules, heads=self.heads, seen_heads=seen, fused=self.fused
        )
        self.names = [layer.name for layer in layers]
        self.heads_unseen = self.heads is None
        # Whatever may turn out to be no head is recorded too, so that the first step masks it.
        self._candidates = self.names
        if self.heads_unseen:
            every = find_gated_layers(model, self.target_modules, heads=(), fused=self.fused)
            self._candidates = [layer.name for layer in every]
        self._head_names = find_heads(model, self.heads, seen)
        self._account_for(model, layers, warn=self.heads is not None)

    def forget(self) -> None:
        """Let go of the model."""
        self._resolved, self._is_sure = None, False

    def end_step(self) -> None:
        """Say that the model may change from here on."""
        self._is_sure = False

    def of(self, model: nn.Module) -> list[GatedLayer]:
        """Return the layers as they are now."""
        if self._resolved is None or not (self._is_sure or self._resolved.are_of(model)):
            found = resolve_gated_layers(model, self.names, fused=self.fused)
            self._resolved = ResolvedLayers(model, self.names, self._as_seen(model, found))
        self._is_sure = True
        return self._resolved.layers

    def to_record(self, model: nn.Module) -> list[GatedLayer]:
        """Return the layers, with those that may turn out to be no heads."""
        if not self.heads_unseen:
            return self.of(model)
        found = resolve_gated_layers(model, self._candidates, fused=self.fused)
        return self._as_seen(model, found)

    def watch(self, model: nn.Module) -> None:
        """Look for the heads in the forward pass that comes, if they are not known."""
        if self.heads_unseen:
            self._heads.open(gateable_layers(model))

    def close(self, model: nn.Module | None = None, output: object = None) -> None:
        """End what `watch` began; with the model, choose by what it has shown."""
        watched = self._heads.is_open
        self._heads.close(output)
        if model is not None and watched and self.heads_unseen:
            self._see_heads(model)

    def _see_heads(self, model: nn.Module) -> None:
        """Choose anew among the candidates where a forward pass has shown other heads.

        What another plugin has frozen since stays among them.
        """
        self.heads_unseen = False
        heads = find_heads(model, None, self._heads.found)
        found = [n for n in self._candidates if not any(inside(n, head) for head in heads)]
        if found:
            self.names, self._head_names = found, heads
            self.forget()
        self._account_for(model, self.of(model), warn=True)

    def _account_for(self, model: nn.Module, layers: list[GatedLayer], *, warn: bool) -> None:
        graph = "names" if self._heads.found is None else "graph"
        source = graph if self.heads is None else "given"
        self.last_account = account(model, layers, self._head_names, source)
        _LOG.info("gate: %s", self.last_account)
        if warn and self.target_modules is None and not self._warned:
            self._warned = _warn_of_left_out(self.last_account)

    def see_uncalled(self, layers: list[GatedLayer]) -> None:
        """Look for products with the weights of layers that train and were not called.

        Where none was found either, raise RuntimeError if they were named, or else warn.
        """
        uncalled = [layer for layer in layers if _is_trained_now(layer)]
        new = [each.name for each in uncalled if can_be_product(each) and not self._tried(each)]
        if new:
            self._by_product.update(new)
            self.forget()
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
            warnings.warn(f"{said}; they train freely", stacklevel=4)

    def _as_seen(self, model: nn.Module, layers: list[GatedLayer]) -> list[GatedLayer]:
        return [as_product(model, each) if self._tried(each) else each for each in layers]

    def _tried(self, layer: GatedLayer) -> bool:
        return layer.name in self._by_product

    def ungated(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is neither a row of a gated layer nor in an output head."""
        trained = {id(rows.parameter) for layer in self.of(model) for rows in layer.rows}
        # By identity: what a head shares, as a tied embedding, goes by the other module's name.
        for name, module in model.named_modules():
            if any(inside(name, head) for head in self._head_names):
                trained |= {id(parameter) for parameter in module.parameters(recurse=False)}
        for name, parameter in model.named_parameters():
            if id(parameter) not in trained:
                yield name, parameter


def refuse_compiled(model: nn.Module) -> None:
    """Raise ValueError for a compiled model, of which no outputs are recorded."""
    for name, module in model.named_modules():
        # An OptimizedModule is what torch.compile returns; `compile()` marks the module itself.
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule":
            raise ValueError(
                f"model is compiled ({name or 'as a whole'}), and what is compiled does not always "
                "call the hooks that record outputs: use score='output' without compiling, or "
                "another score"
            )


def _is_trained_now(layer: GatedLayer) -> bool:
    """Whether the last backward pass has reached a layer."""
    gradients = [rows.parameter.grad for rows in layer.rows]
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


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


def _own_names(argument: str, names: TargetModules) -> TargetModules:
    """Return names that no caller can change any more."""
    if names is None or isinstance(names, str):
        return names
    return tuple(as_list(argument, names, str, what="None, a string or a list of names"))
