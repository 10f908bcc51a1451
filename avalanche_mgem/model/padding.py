"""Which tokens of a batch are padding, for each layer of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

TokenMask = Tensor | Callable[[str], Tensor | None] | None

_IGNORED = -100  # the label of a token that counts for no loss, in all of transformers

# Keys and values of a decoder's attention to the encoder are made from the encoder's tokens.
_CROSS = r"(EncDecAttention|encoder_attn|crossattention|cross_attn)"
_OF_SOURCE = re.compile(rf"{_CROSS}\.(.*\.)?(k|v|key|value|k_proj|v_proj)(\.|$)")
_OF_TARGET = re.compile(r"(^|\.)decoder(\.|$)")


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model, or what it wraps, says that it has an encoder and a decoder."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return any(getattr(config, "is_encoder_decoder", False) is True for config in configs)


def token_masks(batch: Mapping[str, Any], *, encoder_decoder: bool = False) -> TokenMask:
    """Return which tokens of a batch count, [N, L]: one mask, or one for each layer by its name.

    Args:
        batch: a model's input; `attention_mask` is that of its tokens. None where it has none.
        encoder_decoder: whether the model has a decoder with tokens of its own; they count where
            `decoder_attention_mask` says so or, without it, where `labels` are not -100; without
            either, all `decoder_input_ids` do.
    """
    source = _tensor(batch, "attention_mask")
    target = _tensor(batch, "decoder_attention_mask")
    if target is None and (labels := _tensor(batch, "labels")) is not None:
        target = labels != _IGNORED
    if not encoder_decoder or (target is None and "decoder_input_ids" not in batch):
        # A decoder without input of its own is shown the encoder's, as in a classifier from BART.
        return source

    def mask_of(layer: str) -> Tensor | None:
        of_target = _OF_TARGET.search(layer) and not _OF_SOURCE.search(layer)
        return target if of_target else source

    return mask_of


def _tensor(batch: Mapping[str, Any], name: str) -> Tensor | None:
    value = batch.get(name)
    return value if isinstance(value, Tensor) and value.ndim == 2 else None
