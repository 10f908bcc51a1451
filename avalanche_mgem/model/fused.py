"""Linear layers that hold several matrices: which of their output units are queries, keys, values.

How the units lie is read from the class of the module around the layer, as transformers, timm and
torchvision have them, and from its sizes. The published method takes such a layer as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from torch import nn

from avalanche_mgem.arguments import bounded_int, one_of, suggestion
from avalanche_mgem.model.sources import QKV, Part

Fused = Literal["layer", "parts"] | Mapping[str, Sequence[int]]
Sizes = Mapping[str, int]


class _Fused(NamedTuple):
    """A layer of n output units, and the module around it."""

    around: Any
    n: int

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        said = (self.around, getattr(self.around, "config", None))
        names = ("num_attention_heads", "num_heads", "n_heads")
        return next(int(getattr(one, name)) for one in said for name in names if hasattr(one, name))

    def equal(self, *names: str) -> Sizes:
        """As many units each, one part after the other."""
        return dict.fromkeys(names, self.n // len(names))


def _thirds(layer: _Fused) -> Sizes:
    return layer.equal(*QKV)


def _halves(layer: _Fused) -> Sizes:
    return layer.equal("gate", "up")


def _input_first(layer: _Fused) -> Sizes:
    return layer.equal("input", "gate")


def _by_head(layer: _Fused) -> Sizes:
    """Query, key and value of a head together, head by head."""
    return dict.fromkeys(QKV, layer.n // (3 * layer.heads))


def _grouped(layer: _Fused) -> Sizes:
    """All queries, then the keys and the values of fewer heads."""
    heads, kv = layer.heads, layer.around.num_key_value_heads
    head = layer.n // (heads + 2 * kv)
    return {"q": heads * head, "k": kv * head, "v": kv * head}


def _gpt2(layer: _Fused) -> Sizes:
    is_cross = getattr(layer.around, "is_cross_attention", False)
    return layer.equal("k", "v") if is_cross else _thirds(layer)


def _bigcode(layer: _Fused) -> Sizes:
    around = layer.around
    if around.is_cross_attention:
        return layer.equal("k", "v")
    if not around.multi_query:
        return _by_head(layer)
    return {"q": around.embed_dim, "k": around.kv_dim, "v": around.kv_dim}


def _falcon(layer: _Fused) -> Sizes:
    around = layer.around
    head = around.head_dim
    if around.new_decoder_architecture:
        return {"q": around.num_heads // around.num_kv_heads * head, "k": head, "v": head}
    if not around.multi_query:
        return _by_head(layer)
    return {"q": layer.n - 2 * head, "k": head, "v": head}


def _codegen(layer: _Fused) -> Sizes:
    """In as many shards as it was trained with, and the values before the keys."""
    return dict.fromkeys("qvk", layer.n // (3 * getattr(layer.around, "mp_num", 4)))


def _exaone(layer: _Fused) -> Sizes:
    around = layer.around
    return {"q": around.q_dim, "k": around.kv_dim, "v": around.kv_dim}


def _delta_net(layer: _Fused) -> Sizes:
    around = layer.around
    return {"q": around.key_dim, "k": around.key_dim, "v": around.value_dim}


def _delta_net_by_head(layer: _Fused) -> Sizes:
    net = layer.around
    key, values = net.head_k_dim, net.num_v_heads // net.num_k_heads * net.head_v_dim
    return {"q": key, "k": key, "v": values, "z": values}


# (name of the layer, package and class of the module around it): the sizes of its parts, which
# follow one after the other, and again where they do not fill the layer.
_HF = r"transformers(_modules)?\."
_KNOWN: list[tuple[str, str, Callable[[_Fused], Sizes]]] = [
    ("c_attn", rf"{_HF}(\w*GPT2|ImageGPT)Attention", _gpt2),
    ("c_attn", rf"{_HF}Attention", _thirds),  # the first GPT
    ("c_attn", rf"{_HF}GPTBigCode\w*Attention\w*", _bigcode),
    ("query_key_value", rf"{_HF}Falcon\w*Attention\w*", _falcon),
    ("query_key_value", rf"{_HF}(Bloom|GPTNeoX|Persimmon)\w*Attention\w*", _by_head),
    ("Wqkv", rf"{_HF}(Mpt|ModernBert)\w*Attention\w*", _thirds),
    ("Wqkv", rf"{_HF}Dbrx\w*Attention\w*", _grouped),
    ("qkv_proj", rf"{_HF}(Phi3|Phi4)\w*Attention\w*", _grouped),
    ("qkv_proj", rf"{_HF}MiniMaxLightningAttention", _by_head),
    ("qkv_proj", rf"{_HF}CodeGenAttention", _codegen),
    ("qkv_linear", rf"{_HF}LayoutLMv2SelfAttention", _thirds),
    ("att_proj", rf"{_HF}BarkSelf\w*Attention\w*", _thirds),
    ("in_proj", rf"{_HF}DisentangledSelfAttention", _by_head),
    ("in_proj_qkv", rf"{_HF}\w*GatedDeltaNet", _delta_net),
    ("in_proj_qkvz", rf"{_HF}\w*GatedDeltaNet", _delta_net_by_head),
    ("qkv", rf"{_HF}Exaone\w*VisionAttention", _exaone),
    ("qkv", rf"{_HF}\w*Attention", _thirds),  # all others of that name, as far as they are known
    ("qkv", r"timm\.\w*Attention\w*|torchvision\.ShiftedWindowAttention\w*", _thirds),
    ("gate_up_proj", rf"{_HF}\w*MLP", _halves),
    ("Wi", rf"{_HF}ModernBert\w*MLP", _input_first),
]
_NAMES = re.compile(r"\w*qkv\w*|c_attn|query_key_value|att_proj|W_?pack|gate_up_proj")


def check_fused(fused: Fused) -> Fused:
    """Return it, sizes as tuples; raise ValueError for what says no way to take fused layers."""
    if not isinstance(fused, Mapping):
        return "parts" if one_of("fused", fused, ("layer", "parts")) == "parts" else "layer"
    checked, what = {}, "the sizes of at least two parts, by a layer's name"
    if not fused:
        raise ValueError(f"fused must be 'layer', 'parts' or {what}, got {fused!r}")
    for name, sizes in fused.items():
        if not isinstance(name, str) or not isinstance(sizes, Sequence) or isinstance(sizes, str):
            raise ValueError(f"fused must be 'layer', 'parts' or {what}, got {name!r}: {sizes!r}")
        own = tuple(bounded_int(f"fused[{name!r}]", size) for size in sizes)
        if len(own) < 2:
            raise ValueError(f"fused must be 'layer', 'parts' or {what}, got {name!r}: {sizes!r}")
        checked[name] = own
    return checked


def parts_of(model: nn.Module, name: str, module: Any, fused: Fused) -> dict[str, Part] | None:
    """Return the parts into which the output of a linear layer is divided; None: it is one.

    Args:
        model: that has the layer.
        name: of the layer.
        module: Linear, Conv1D or a LoRA layer on one.
        fused: "layer", "parts" or sizes, see `find_gated_layers`.

    Raises:
        ValueError: how the layer is divided is not known, or the sizes do not fit it.
    """
    if fused == "layer":
        return None
    base = getattr(module, "base_layer", module)
    n = int(getattr(base, "out_features", 0) or base.nf)
    sizes = _given(name, fused) if isinstance(fused, Mapping) else _known(model, name, n)
    if sizes is None:
        return None
    period = sum(sizes.values())
    if min(sizes.values()) <= 0 or n % period:
        raise ValueError(
            f"fused: the parts of {name!r}, {tuple(sizes.values())}, do not fill its {n} units"
        )
    starts = accumulate(sizes.values(), initial=0)
    return {
        part: Part(period, start, size)
        for (part, size), start in zip(sizes.items(), starts, strict=False)
    }


def _given(name: str, fused: Mapping[str, Sequence[int]]) -> Sizes | None:
    for target, sizes in fused.items():
        if name == target or name.endswith(f".{target}"):
            names = QKV if len(sizes) == 3 else map(str, range(len(sizes)))
            return dict(zip(names, sizes, strict=True))
    return None


def _known(model: nn.Module, name: str, n: int) -> Sizes | None:
    path, _, last = name.rpartition(".")
    around = model.get_submodule(path)
    kind = f"{type(around).__module__.partition('.')[0]}.{type(around).__name__}"
    for layer, pattern, sizes in _KNOWN:
        if layer == last and re.fullmatch(pattern, kind):
            return sizes(_Fused(around, n))
    if _NAMES.fullmatch(last):
        raise ValueError(
            f"fused='parts': how {name!r} of {type(around).__name__} is divided is not known; say "
            f"it by sizes, fused={{{last!r}: (q, k, v)}}, or take it as one with fused='layer'"
        )
    return None


def require_matches(fused: Fused, names: Sequence[str]) -> None:
    """Raise ValueError for sizes of layers that are none of the gated ones."""
    for target in fused if isinstance(fused, Mapping) else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = suggestion(target, names)
            raise ValueError(f"fused: {target!r} names no gated linear layer; {known}")
