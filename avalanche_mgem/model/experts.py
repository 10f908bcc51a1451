"""The layers of mixtures of experts, whose experts are slices of one parameter.

transformers keeps the experts of a layer as parameters [experts, rows, in] (from version 5 on), or
[experts, in, rows]. What an expert's rows put out are the products of the tokens that are routed to
it, `avalanche_mgem.model.products`; the rows of each expert are chosen among themselves. Where one
parameter holds two matrices, as `gate_up_proj` does, so are those of each of the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from avalanche_mgem.model.lora import active_adapters, check_lora, is_of_parameter
from avalanche_mgem.model.sources import Halves, Product
from avalanche_mgem.model.targets import join
from avalanche_mgem.model.units import GatedLayer, Rows, is_trained

_NAMES = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
_DBRX = {"w1": 1, "v1": 1, "w2": 2}


@dataclass(frozen=True)
class _Weight:
    """A parameter with experts' rows.

    Args:
        path: its name in the module that multiplies with it.
        owner: the module that has it.
        name: its name there.
        dim: along which its units lie, as [experts, ., .] or, without experts, [., .].
        experts: how many; None: it is one matrix.
        folded: whether [experts * ., .] is how it is kept.
        halves: how its two matrices lie, one after the other or row by row; None: it is one.
    """

    path: str
    owner: nn.Module
    name: str
    dim: int
    experts: int | None
    folded: bool = False
    halves: Halves | None = None

    @property
    def parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self.owner, self.name)
        return parameter

    @property
    def blocks(self) -> tuple[int, ...]:
        """Among whose rows is chosen: each expert's, and each half's."""
        experts = () if self.experts is None else (self.experts,)
        return experts if self.halves is None else (*experts, 2)

    def rows(self, name: str) -> Rows:
        """The rows of the parameter of this name."""
        if self.halves == "interleaved":  # [.., n, 2] of the last dimension
            return Rows(name, self.parameter, (0, self.dim + 1, self.dim), ((self.dim, (-1, 2)),))
        dims = (self.dim,) if self.experts is None else (0, self.dim)
        folds = ((0, (self.experts, -1)),) if self.folded and self.experts is not None else ()
        return Rows(name, self.parameter, dims, folds)

    def rows_of_b(self, name: str, b: nn.Parameter) -> Rows:
        """Those of a LoRA's B [out, r * experts]: the [out, r] of all experts, r by r."""
        if self.experts is None:
            return Rows(name, b)
        by_expert = (1, (-1, self.experts))
        if self.halves == "interleaved":
            return Rows(name, b, (3, 1, 0), ((0, (-1, 2)), by_expert))
        return Rows(name, b, (2, 0), (by_expert,))

    def rows_of_a(self, name: str, a: nn.Parameter) -> Rows:
        """Those of its A [experts * r, in]: the [r, in] of all, one after the other."""
        if self.experts is None:
            return Rows(name, a)
        return Rows(name, a, (0, 1), ((0, (self.experts, -1)),))

    def source(self, through: nn.Parameter | None = None) -> Product:
        """How the products with it are seen, or those of their inputs with an A."""
        bias = f"{self.name}_bias" if hasattr(self.owner, f"{self.name}_bias") else None
        halves = self.halves if through is None else None
        return Product(self.name, self.owner, self.dim, bias, through, self.experts, halves)


def has_experts(module: nn.Module) -> bool:
    """Whether the module holds experts as slices of parameters, or is peft's wrapper of one."""
    return bool(_Held.by("", module).weights)


def expert_keys(name: str, module: nn.Module) -> list[str]:
    """Return the names by which the weights of `expert_layers` are known."""
    return [_layer_name(name, weight) for weight in _Held.by(name, module).weights]


def expert_layers(name: str, module: nn.Module) -> list[GatedLayer]:
    """Return the layers of a module's experts, with those of LoRA on their parameters.

    Of an adapter, which adds B A to each expert's matrix, B has rows of the expert's output and A
    of what the expert's tokens would be in between, as those of a LoRA on `nn.Linear`.

    Raises:
        ValueError: an adapter is merged.
    """
    held = _Held.by(name, module)
    return [layer for weight in held.weights for layer in _layers(name, held, weight)]


@dataclass(frozen=True)
class _Held:
    """A module inside peft's wrappers of its parameters, and its weights."""

    name: str
    module: Any
    wrappers: list[tuple[str, Any]]
    weights: list[_Weight]

    @classmethod
    def by(cls, name: str, module: Any) -> _Held:
        wrappers = []
        while is_of_parameter(module):
            wrappers.append((name, module))
            name, module = join(name, "base_layer"), module.base_layer
        adapted = {wrapper.parameter_name for _, wrapper in wrappers}
        return cls(name, module, wrappers, _weights(module, adapted))


def _layers(name: str, held: _Held, weight: _Weight) -> Iterator[GatedLayer]:
    kind: Literal["experts", "lora"] = "lora" if weight.experts is None else "experts"
    own = _layer_name(name, weight)
    adapters = [
        (join(wrapper_name, f"lora_{{}}.{adapter}.weight"), wrapper, adapter)
        for wrapper_name, wrapper in held.wrappers
        if wrapper.parameter_name == weight.name
        for adapter in active_adapters(wrapper)
    ]
    rows = [weight.rows(join(held.name, weight.path))]
    rows += [
        weight.rows_of_b(path.format("B"), wrapper.lora_B[adapter].weight)
        for path, wrapper, adapter in adapters
    ]
    trained = tuple(r for r in rows if is_trained(r.parameter))
    source = weight.source()
    yield GatedLayer(own, held.module, kind, trained, source=source, blocks=weight.blocks)
    for path, wrapper, adapter in adapters:
        check_lora(name, wrapper, [adapter])
        a = wrapper.lora_A[adapter].weight
        trained = (weight.rows_of_a(path.format("A"), a),) if is_trained(a) else ()
        layer_name, source, blocks = f"{own}.lora_A.{adapter}", weight.source(a), weight.blocks[:1]
        yield GatedLayer(layer_name, held.module, kind, trained, source=source, blocks=blocks)


def _layer_name(name: str, weight: _Weight) -> str:
    # What a module of one parameter puts out goes by the module's name, as a linear layer's does.
    return name if weight.path == "weight" else join(name, weight.path)


def _weights(module: Any, adapted: Collection[str]) -> list[_Weight]:
    """The parameters of a module that hold experts' rows, or one matrix to which LoRA is added."""
    if not module._parameters and "mlp" not in module._modules:
        return []
    glu: Any = getattr(module, "mlp", None)
    if hasattr(glu, "moe_num_experts") and all(hasattr(glu, name) for name in _DBRX):
        return [
            _Weight(f"mlp.{name}", glu, name, dim, glu.moe_num_experts, folded=True)
            for name, dim in _DBRX.items()
        ]
    if isinstance(module, nn.Linear) or is_router(module):
        return [_Weight("weight", module, "weight", 0, None)] if "weight" in adapted else []
    if hasattr(module, "num_experts") and _n_dims(module, "weight") == 3:
        return [_Weight("weight", module, "weight", 1, module.weight.shape[0])]
    names = [name for name in _NAMES if _n_dims(module, name) == 3]
    dim = 2 if _is_transposed(module, names) else 1
    return [
        _Weight(
            name,
            module,
            name,
            dim,
            getattr(module, name).shape[0],
            halves=_halves(module, name),
        )
        for name in names
    ]


def _n_dims(module: nn.Module, name: str) -> int:
    parameter = module._parameters.get(name)
    return 0 if parameter is None else parameter.ndim


def _is_transposed(module: Any, names: list[str]) -> bool:
    """Whether the experts' matrices are [in, rows]: as the module says, or as two of them fit."""
    said = getattr(module, "is_transposed", None)
    if said is not None or not {"gate_up_proj", "down_proj"} <= set(names):
        return bool(said)
    fused, down = module.gate_up_proj.shape, module.down_proj.shape
    return bool(fused[2] == 2 * down[1] and fused[1] == down[2])


def _halves(module: Any, name: str) -> Halves | None:
    if name != "gate_up_proj" or getattr(module, "has_gate", True) is False:
        return None
    apart = getattr(module, "is_concatenated", "GptOss" not in type(module).__name__)
    return "concatenated" if apart else "interleaved"


def is_router(module: nn.Module) -> bool:
    """Whether the module is a router with a weight of its own, whose logits may be no output."""
    if "Router" not in type(module).__name__ or type(module).forward is nn.Linear.forward:
        return False
    return _n_dims(module, "weight") == 2


def router_layer(name: str, module: Any) -> GatedLayer:
    """Return the layer of a router's logits."""
    rows = (Rows(join(name, "weight"), module.weight),) if is_trained(module.weight) else ()
    bias = getattr(module, "bias", None)
    biases = ((join(name, "bias"), bias),) if is_trained(bias) else ()
    return GatedLayer(name, module, "router", rows, biases, source=Product("weight", module, 0))
