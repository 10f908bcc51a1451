"""The body of a model of transformers as an encoder of texts: which part, and what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avalanche_mgem.huggingface.loading import load_pretrained, require

_POSITIONS = ("position_embeddings", "wpe", "embed_positions")


def text_encoder(model: str | Path | nn.Module) -> Any:
    """Return the encoder of a model by name, or of one at hand: its body without any head.

    Raises:
        ValueError: no such model can be loaded, or `model` is none of transformers.
        ImportError: transformers is not installed.
    """
    found: Any = model
    if isinstance(model, str | Path):
        found = load_pretrained(model, _kind(model))
    elif not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings"):
        raise ValueError(
            "model must be a name on the hub, a local folder or a model of transformers, "
            f"got {type(model).__name__}"
        )
    inner = found.get_base_model() if hasattr(found, "get_base_model") else found
    body = getattr(inner, "base_model", inner)
    # Funnel has parts of these names, and is an encoder as a whole.
    if getattr(body.config, "is_encoder_decoder", False):
        return body.encoder if isinstance(getattr(body, "encoder", None), nn.Module) else found
    return found if body is inner else body  # peft's wrapper stays where it wraps no head


def input_embeddings(model: Any) -> nn.Module:
    """Return the embedding of token ids of a model of transformers."""
    embeddings: nn.Module = model.get_input_embeddings()
    return embeddings


def is_causal(config: Any) -> bool:
    """Whether a token of the model sees only those before it, by its configuration."""
    if getattr(config, "is_encoder_decoder", False):
        return False
    auto = require("transformers.models.auto.modeling_auto")
    # Encoders that can be made decoders are in the first table too.
    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return getattr(config, "is_decoder", False) or (causal and not masked)


def without_pooler(encoder: nn.Module) -> None:
    """Take the pooler off an encoder that can do without, or freeze it: it is not used."""
    pooler = getattr(encoder, "pooler", None)
    if not isinstance(pooler, nn.Module):
        return
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.pooler = None  # type: ignore[assignment]
    else:
        pooler.requires_grad_(False)


def counts_positions(encoder: nn.Module) -> bool:
    """Whether the encoder finds by itself which positions are padding, as RoBERTa does."""
    positions = position_embedding(encoder)
    return positions is not None and positions.padding_idx is not None


def encoder_inputs(
    encoder: nn.Module, features: Mapping[str, Tensor], *, positions: bool
) -> dict[str, Any]:
    """Return what an encoder takes of features by name, each [B, L].

    positions: give it position_ids that count tokens only, if it takes any; else a text padded on
    the left would begin at another position than one without padding. token_type_ids are left out
    for a model with fewer than two types of them (RoBERTa has one).

    Raises:
        ValueError: features are not given by name.
    """
    if not isinstance(features, Mapping) or "input_ids" not in features:
        got = list(features) if isinstance(features, Mapping) else type(features).__name__
        raise ValueError(f"features must be a dict with input_ids, got {got}")
    names = taken_names(encoder)
    inputs: dict[str, Any] = {name: value for name, value in features.items() if name in names}
    if getattr(encoder.config, "type_vocab_size", 0) < 2:
        inputs.pop("token_type_ids", None)
    mask = features.get("attention_mask")
    if "use_cache" in names:
        inputs["use_cache"] = False
    if positions and mask is not None and "position_ids" in names and "position_ids" not in inputs:
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return inputs


def taken_names(model: Any) -> frozenset[str]:
    """Return the names of what a model's forward takes; of a wrapper of peft, its model's."""
    kind: Any = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return _names_of(kind)


@cache
def _names_of(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters) - {"self"}


def position_embedding(model: nn.Module) -> nn.Embedding | None:
    """Return the embedding of absolute positions, if the model has one.

    One with a padding_idx is RoBERTa's, whose positions count from padding_idx + 1.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding):
            return module
    return None


def _kind(model: str | Path) -> str:
    """Return the class of transformers that loads a text encoder by this name."""
    config = load_pretrained(model, "AutoConfig")
    auto = require("transformers.models.auto.modeling_auto")
    # T5's encoder alone, without the decoder's weights.
    alone = config.is_encoder_decoder and (
        config.model_type in auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    )
    return "AutoModelForTextEncoding" if alone else "AutoModel"
