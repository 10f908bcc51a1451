"""Which layers leave the gradients of their masked rows out, in one step of a gate.

Which rows are kept is known when the forward pass is over. Where that pass is the only one of the
step, the backward pass need not compute the gradients of the other rows, or may compute them as
zeros: see `avalanche_mgem.model.kept_products`. Where it may not be, or somebody reads whole
gradients, or it would take longer, gradients are computed whole and masked after the backward pass.
The masks are the same, kept rows differ by rounding, and masked rows are zero, all ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from avalanche_mgem.model.kept_products import Convolution, Cut, Matrix, Products, cut_output
from avalanche_mgem.model.sources import OUTPUT, Call
from avalanche_mgem.model.units import GatedLayer
from avalanche_mgem.restriction.rows import kept_positions, n_masked

FUSED = "fused"
ZEROED = "zeroed"

# Of floating-point operations that one element costs to be gathered, and that a backward pass in
# Python costs. On one thread of an AMD EPYC (AVX2), float32: 2 ns an element at 70 operations a ns,
# for 1024 tokens of 384 to 1536 units; 32 tokens of 1000 units agree. A whole row is copied in a
# sixth of that time, and made zero in a twelfth.
_A_MOVE, _A_CALL = 50, 2**22
# The host prepares more launches for an accelerator, which must be worth some 0.1 ms of it. This is
# an estimate from its operations a second.
_A_CALL_ELSEWHERE = 2**31
# Elements of a gradient that are masked, and read to see whether they are finite, in the time of
# that call; and tokens to which one of a row is worth it, as dy is masked instead.
_LEAST_ZEROED, _FEW_TOKENS = 2**18, 4


# They look at a layer's output, and leave it as it is or put one before the other.
_OUR_HOOKS = ("avalanche_mgem.model.magnitudes", "avalanche_mgem.model.heads")


class KeptGradients:
    """Lets the layers of a model compute the gradients of kept rows alone, in one step at a time.

        kept_gradients.begin()                # a step
        kept_gradients.open(layers, 0.7)      # a forward pass; `output` is called by its hooks
        kept_gradients.decide(kept)           # the pass is over
        kept_gradients.is_masked(layer)       # after the backward pass

    Attributes:
        decided: what is kept of the layers that leave rows out, bool [n] by name.
    """

    def __init__(self) -> None:
        self._recalled: set[str] = set()  # layers that are called more than once in a pass
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.decided: dict[str, Tensor] = {}
        self._cuts: dict[str, Cut] = {}
        self._reasons: dict[str, str] = {}
        self._zeroed: dict[str, str] = {}  # the reason why their rows are not left out
        self._paths: dict[str, str] | None = None
        self._fraction = 0.0
        self._is_open = self._takes_norms = False

    def open(
        self,
        layers: Iterable[GatedLayer],
        mask_fraction: float,
        reason: str = "",
        *,
        takes_norms: bool = False,
    ) -> None:
        """Begin a forward pass of these layers.

        reason: why no layer may leave rows out; "": those may that `why_whole` lets.
        takes_norms: whether `norms` is asked for.
        """
        layers, self._fraction, self._is_open = list(layers), mask_fraction, True
        self._takes_norms = takes_norms
        uses = Counter(id(rows.parameter) for layer in layers for rows in layer.rows)
        for layer in layers:
            why = reason
            if not why and any(uses[id(rows.parameter)] > 1 for rows in layer.rows):
                why = "its weight is another layer's too"
            if not why and layer.name in self._recalled:
                why = "called more than once"
            self._reasons[layer.name] = why

    def output(self, layer: GatedLayer, call: Call) -> Tensor | None:
        """Return a layer's output with a backward pass of the kept rows; None: it stays as it is.

        Of a layer that is called again in the same pass, all gradients are computed whole.
        """
        name = layer.name
        if not self._is_open or self._reasons.get(name):
            return None
        if name in self._cuts:
            self._recalled.add(name)
            self._spoil(name, "called more than once")
            return None
        cut = self._cuts[name] = Cut(takes_norms=self._takes_norms)
        products = _products(layer.module)
        reason = why_whole(layer, call, products)
        if not reason and (slower := _why_slower(layer, call, self._fraction)):
            if _can_be_zeroed(layer, call):
                self._zeroed[name] = slower
            else:
                reason = slower
        if products is None or reason:
            self._reasons[name] = reason
            return None
        module: Any = layer.module
        return cut_output(call.output, call.arguments[0], module.weight, module.bias, products, cut)

    def undecided(self) -> list[str]:
        """Return the layers that wait for `decide`."""
        return [name for name in self._cuts if not self._reasons[name]] if self._is_open else []

    def decide(self, kept: Mapping[str, Tensor]) -> None:
        """End the forward pass: these rows are kept, bool [n] by layer."""
        self.decided = {name: kept[name] for name in self.undecided() if name in kept}
        cut = {name: kept for name, kept in self.decided.items() if name not in self._zeroed}
        for name, positions in kept_positions(cut, self._fraction).items():
            self._cuts[name].positions = positions
        for name in self.decided.keys() & self._zeroed.keys():
            self._cuts[name].kept = kept[name]
        self._is_open = False

    def abandon(self, reason: str) -> bool:
        """Compute gradients whole from here on; return whether some were not by then.

        Of those the rows stay those that were decided.
        """
        used = {name for name, cut in self._cuts.items() if cut.used}
        for name in self._cuts:
            self._spoil(name, reason)
        self.decided = {name: kept for name, kept in self.decided.items() if name in used}
        self._is_open = False
        return bool(used)

    def _spoil(self, name: str, reason: str) -> None:
        self._cuts[name].cancel()
        self._reasons[name] = self._reasons[name] or reason

    def is_masked(self, layer: GatedLayer) -> bool:
        """Whether the gradient of a layer's weight is as it was made of the kept rows.

        What was scaled since may have been added to as well: it is masked once more.
        """
        cut = self._cuts.get(layer.name)
        return cut is not None and cut.is_all_of(layer.rows[0].parameter.grad)

    def norms(self, layers: Iterable[GatedLayer]) -> dict[int, tuple[Tensor, ...]]:
        """Return the norms of dy and x, of gradients dy'x as they were made, by parameters' ids.

        They are there where dy and x are small beside the gradient. No element of it exceeds the
        product of their norms (Cauchy and Schwarz), so that nobody has to read it to know that all
        are finite.
        """
        cuts = ((layer, self._cuts.get(layer.name)) for layer in layers)
        return {
            id(layer.rows[0].parameter): cut.norms
            for layer, cut in cuts
            if cut is not None and cut.norms and self.is_masked(layer)
        }

    def settle(self, layers: Iterable[GatedLayer]) -> dict[str, str]:
        """Return how each was made: "fused", or "zeroed: " or "masked: " and the reason.

        From here on no gradient is taken for one that is masked: others may be made.
        """
        if self._paths is None:
            self._paths = {layer.name: self._settled(layer) for layer in layers}
        return self._paths

    def _settled(self, layer: GatedLayer) -> str:
        cut = self._cuts.get(layer.name)
        reason = self._reasons.get(layer.name) or (cut.reason if cut is not None else "")
        made = cut is not None and cut.has_made(layer.rows[0].parameter.grad)
        if cut is not None:
            cut.forget()
        if made and not reason:
            slower = self._zeroed.get(layer.name)
            return f"{ZEROED}: {slower}" if slower else FUSED
        return f"masked: {reason or _why_unlike(layer, cut)}"


def _why_unlike(layer: GatedLayer, cut: Cut | None) -> str:
    if cut is None:
        return "not called"
    if layer.rows[0].parameter.grad is None:
        return "no gradient"
    return "its gradient has other parts" if cut.used else "no backward pass after the decision"


def why_whole(layer: GatedLayer, call: Call, products: Products | None) -> str:
    """Return why a layer's gradient must be computed whole in this call; "": it need not."""
    module: Any = layer.module
    if layer.source is not OUTPUT and layer.source != OUTPUT:
        return "a part of a layer"
    if len(layer.rows) != 1 or layer.blocks or products is None:
        return f"no plain Linear, Conv2d or Conv1D: {type(module).__name__}"
    weight = module.weight
    if type(weight) is not nn.Parameter or weight is not layer.rows[0].parameter:
        return "its weight is made of others"
    if type(getattr(module, "bias", None)) not in (nn.Parameter, type(None)):
        return "its bias is made of others"
    if weight.layout != torch.strided or not weight.is_floating_point():
        return "its weight is not dense"
    # A row that overflows must be seen, by a gradient scaler for one.
    if torch.float16 in (weight.dtype, call.output.dtype):
        return "float16"
    return _why_watched(module, weight) or _why_not_now() or _why_call(call)


def _products(module: Any) -> Products | None:
    """The products of the layer's backward pass; None: it is no plain layer."""
    kind = type(module)
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return None
    if kind is nn.Linear:
        return Matrix(0)
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return Matrix(1)
    is_plain = kind is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
    if is_plain and not isinstance(module.padding, str):
        return Convolution(module.stride, module.padding, module.dilation)
    return None


def _why_watched(module: Any, weight: Tensor) -> str:
    """Whether somebody else looks at the layer, or at its gradients."""
    every = torch.nn.modules.module
    before = module._forward_pre_hooks or every._global_forward_pre_hooks
    hooks = (*module._forward_hooks.values(), *every._global_forward_hooks.values())
    if before or not all(type(hook).__module__ in _OUR_HOOKS for hook in hooks):
        return "forward hooks"
    backward = (
        module._backward_hooks or module._backward_pre_hooks or weight._backward_hooks,
        every._global_backward_hooks or every._global_backward_pre_hooks,
        getattr(weight, "_post_accumulate_grad_hooks", None),
    )
    return "backward hooks" if any(backward) else ""


def _why_not_now() -> str:
    """Whether torch is in a mode in which nothing may be changed."""
    if not torch.is_grad_enabled():
        return "no gradient is recorded"
    if _saved_tensors_hooks():
        return "activation checkpointing, or other hooks on saved tensors"
    if torch._C._is_tracing() or torch.compiler.is_compiling():
        return "traced or compiled"
    if _is_transformed():
        return "a functional transform or a mode of torch"
    return ""


def _saved_tensors_hooks() -> bool:
    """Whether there are such hooks; a second pass of checkpointing must save the same tensors."""
    top: Callable[[bool], object] | None
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


def _is_transformed() -> bool:
    functorch: Any = torch._C._functorch
    if functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return True
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())


def _why_call(call: Call) -> str:
    output = call.output
    if len(call.arguments) != 1 or call.keywords or type(call.arguments[0]) is not Tensor:
        return "its input is not one tensor"
    x = call.arguments[0]
    plain = type(output) is Tensor and output.requires_grad and output.ndim == x.ndim > 1
    if not plain or not x.is_floating_point() or x.layout != torch.strided:
        return "its input or its output is no plain tensor"
    if isinstance(call.module, nn.Conv2d) and x.ndim != 4:
        return "its input is no batch"
    return ""


def _why_slower(layer: GatedLayer, call: Call, mask_fraction: float) -> str:
    """Compare the products that are saved with what is gathered and scattered for it."""
    n, output = layer.n_rows, call.output
    masked = n_masked(mask_fraction, n)
    tokens = output.numel() // max(n, 1)
    width = layer.rows[0].parameter.numel() // max(n, 1)
    saved = tokens * masked * width
    least = _A_CALL if output.device.type == "cpu" else _A_CALL_ELSEWHERE
    kept = n - masked
    moved = kept * tokens + kept * width / 6 + n * width / 12
    return "it would take longer" if saved <= _A_MOVE * moved + least else ""


def _can_be_zeroed(layer: GatedLayer, call: Call) -> bool:
    """Whether the gradient of the output is masked in less time than that of the weight."""
    size, n = layer.rows[0].parameter.numel(), max(layer.n_rows, 1)
    width, tokens = size // n, call.output.numel() // n
    is_matrix = layer.rows[0].parameter.ndim == 2 and call.output.device.type == "cpu"
    return is_matrix and size >= _LEAST_ZEROED and _FEW_TOKENS * tokens <= width
