"""Models of transformers in Avalanche: classifiers, dict batches, parameter groups, LoRA.

transformers and peft are imported when something needs them: `pip install 'avalanche-mgem[hf]'`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.huggingface.classifier import TextClassifier, check_tokenizer, text_classifier
from avalanche_mgem.huggingface.generation import (
    CausalAnswers,
    TextToText,
    causal_answers,
    text_to_text,
)
from avalanche_mgem.huggingface.loading import load_pretrained, load_tokenizer, require
from avalanche_mgem.huggingface.lora import IncLoRAPlugin, LoRAPlugin, OLoRAPlugin
from avalanche_mgem.huggingface.losses import TokenLogits, TokenLoss
from avalanche_mgem.huggingface.masked import MaskedLanguageModel, masked_language_model
from avalanche_mgem.huggingface.orthogonality import (
    OrthogonalityMetric,
    orthogonality_metrics,
    orthogonality_penalty,
)
from avalanche_mgem.huggingface.parameters import ParameterGroupsPlugin, parameter_groups
from avalanche_mgem.huggingface.strategy import (
    DictBatches,
    HuggingFaceStrategy,
    KeywordModel,
    by_keyword,
    by_position,
    with_dict_batches,
)
from avalanche_mgem.streams.text.answers import label_words_of

if TYPE_CHECKING:
    from avalanche_mgem.huggingface.callback import MIGUCallback

__all__ = [
    "CausalAnswers",
    "DictBatches",
    "HuggingFaceStrategy",
    "IncLoRAPlugin",
    "KeywordModel",
    "LoRAPlugin",
    "MIGUCallback",
    "MaskedLanguageModel",
    "OLoRAPlugin",
    "OrthogonalityMetric",
    "ParameterGroupsPlugin",
    "TextClassifier",
    "TextToText",
    "TokenLogits",
    "TokenLoss",
    "by_keyword",
    "by_position",
    "causal_answers",
    "check_tokenizer",
    "label_words_of",
    "load_pretrained",
    "load_tokenizer",
    "masked_language_model",
    "orthogonality_metrics",
    "orthogonality_penalty",
    "parameter_groups",
    "text_classifier",
    "text_to_text",
    "with_dict_batches",
]


def __getattr__(name: str) -> object:
    # A class of transformers' is underneath, which is imported when the callback is asked for.
    if name != "MIGUCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in ("transformers", "accelerate"):
        require(package)
    from avalanche_mgem.huggingface.callback import MIGUCallback

    return MIGUCallback
