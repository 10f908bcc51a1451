"""Masked-language modelling, for continual pre-training under any strategy of Avalanche."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import finite, positive_int
from avalanche_mgem.huggingface.classifier import check_tokenizer
from avalanche_mgem.huggingface.encoders import input_embeddings, taken_names
from avalanche_mgem.huggingface.generation import model_and_tokenizer
from avalanche_mgem.huggingface.losses import TokenLogits
from avalanche_mgem.streams.text.tokens import ATTENTION_MASK, INPUT_IDS

# BERT's shares (Devlin et al., 2019, section 3.1) of the chosen tokens.
_AS_MASK, _AS_RANDOM = 0.8, 0.1


class MaskedLanguageModel(nn.Module):
    """A model of transformers (RoBERTa, BERT) that learns to tell the tokens that are hidden.

    Each token that is neither special nor padding is chosen with probability mask_share. Of those,
    80% become the mask token, 10% a random one that is not special, and 10% stay, as for BERT. The
    output is `TokenLogits` at the chosen tokens, for the criterion `TokenLoss`; its scores [B, 2]
    are the share of a text's chosen tokens that the model tells, and the rest. The stream is
    `plain_text_stream`'s, and the figure to evaluate is the loss, or exp(loss), the perplexity.

    In training mode the draws are from torch's global random state, as dropout's are. In eval mode
    they are those of `seed` for each batch, always the same, and the global state is left alone.

    Args:
        model: of transformers, with a head for masked tokens.
        tokenizer: the one that the stream was made with.
        mask_share: in (0, 1].
        seed: of the draws in eval mode.

    Raises:
        ValueError: an argument out of range, a tokenizer without a mask token or a padding token,
            or with more ids than the model has embeddings.
    """

    _special: Tensor
    _ordinary: Tensor

    def __init__(
        self, model: nn.Module, tokenizer: Any, mask_share: float = 0.15, *, seed: int = 0
    ) -> None:
        super().__init__()
        check_tokenizer(model, tokenizer)
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise ValueError(
                "tokenizer has no mask token: set one, tokenizer.mask_token = '<mask>'"
            )
        self.mask_share = finite("mask_share", mask_share, minimum=0, above=True)
        if self.mask_share > 1:
            raise ValueError(f"mask_share must be in (0, 1], got {mask_share!r}")
        self.seed = positive_int("seed", seed, minimum=0)
        self.model = model
        self._mask_id = int(tokenizer.mask_token_id)
        special = set(tokenizer.all_special_ids)
        ordinary = set(tokenizer.get_vocab().values()) - special
        self.register_buffer("_special", torch.tensor(sorted(special)), persistent=False)
        self.register_buffer("_ordinary", torch.tensor(sorted(ordinary)), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        """The model without its head; `text_classifier(copy.deepcopy(masked.encoder))` tunes it."""
        model: Any = self.model
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        encoder: nn.Module = model.base_model
        return encoder

    def forward(self, features: Mapping[str, Tensor]) -> TokenLogits:
        """Hide tokens of features (input_ids, attention_mask, ... [B, L]), return their logits."""
        ids = features[INPUT_IDS]
        hidden, chosen = self._hidden(ids, features.get(ATTENTION_MASK))
        known = taken_names(self.model) - {INPUT_IDS}
        others = {name: value for name, value in features.items() if name in known}
        logits = self.model(input_ids=hidden, **others).logits[chosen]
        targets = ids[chosen]
        with torch.no_grad():
            right = torch.zeros(len(ids), device=ids.device)
            right.index_add_(0, chosen.nonzero()[:, 0], (logits.argmax(-1) == targets).float())
            share = right / chosen.sum(1).clamp(min=1)
        return TokenLogits(logits, targets, torch.stack([share, 1 - share], dim=1))

    def get_input_embeddings(self) -> nn.Module:
        """Return the model's embedding of token ids, as models of transformers do."""
        return input_embeddings(self.model)

    def _hidden(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The ids as the model sees them, and which were chosen, both [B, L]."""
        generator, device = None, ids.device
        if not self.training:
            # On the CPU, so that the draws are the same on every device.
            generator, device = torch.Generator().manual_seed(self.seed), torch.device("cpu")
        draw, fate = torch.rand(2, *ids.shape, generator=generator, device=device).to(ids.device)
        # No special one: RoBERTa would number its positions anew after a random padding token.
        places = torch.randint(len(self._ordinary), ids.shape, generator=generator, device=device)
        random = self._ordinary[places.to(ids.device)]
        chosen = (draw < self.mask_share) & ~torch.isin(ids, self._special)
        if mask is not None:
            chosen &= mask != 0
        hidden = ids.masked_fill(chosen & (fate < _AS_MASK), self._mask_id)
        replaced = chosen & (fate >= _AS_MASK) & (fate < _AS_MASK + _AS_RANDOM)
        return torch.where(replaced, random, hidden), chosen


def masked_language_model(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    mask_share: float = 0.15,
    *,
    seed: int = 0,
    **options: Any,
) -> MaskedLanguageModel:
    """Return a MaskedLanguageModel of a model by its name, folder, or at hand (no copy).

    tokenizer: the model's; None: that of the same name or folder. options: for `from_pretrained`.

    Raises:
        ValueError: no such model can be loaded, and where `MaskedLanguageModel` does.
        ImportError: transformers is not installed.
    """
    loaded, own = model_and_tokenizer(model, tokenizer, "AutoModelForMaskedLM", options)
    return MaskedLanguageModel(loaded, own, mask_share, seed=seed)
