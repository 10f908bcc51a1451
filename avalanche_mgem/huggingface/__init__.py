"""Models of transformers in Avalanche: classifiers, dict batches, parameter groups, LoRA.

transformers and peft are imported when something needs them: `pip install 'avalanche-mgem[hf]'`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.huggingface.loading import require
from avalanche_mgem.lazy import public_names

if TYPE_CHECKING:
    from avalanche_mgem.huggingface.callback import MIGUCallback
    from avalanche_mgem.huggingface.classifier import (
        TextClassifier,
        check_tokenizer,
        text_classifier,
    )
    from avalanche_mgem.huggingface.generation import (
        CausalAnswers,
        TextToText,
        causal_answers,
        text_to_text,
    )
    from avalanche_mgem.huggingface.loading import load_pretrained, load_tokenizer
    from avalanche_mgem.huggingface.lora import IncLoRAPlugin, LoRAPlugin, OLoRAPlugin
    from avalanche_mgem.huggingface.losses import TokenLogits, TokenLoss
    from avalanche_mgem.huggingface.magnitude_callback import HybridMagnitudeCallback
    from avalanche_mgem.huggingface.masked import MaskedLanguageModel, masked_language_model
    from avalanche_mgem.huggingface.memory_callback import MGEMCallback
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

__all__ = [
    "CausalAnswers",
    "DictBatches",
    "HuggingFaceStrategy",
    "HybridMagnitudeCallback",
    "IncLoRAPlugin",
    "KeywordModel",
    "LoRAPlugin",
    "MGEMCallback",
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

_find, __dir__ = public_names(
    __name__,
    {
        "avalanche_mgem.huggingface.callback": ("MIGUCallback",),
        "avalanche_mgem.huggingface.classifier": (
            "TextClassifier",
            "check_tokenizer",
            "text_classifier",
        ),
        "avalanche_mgem.huggingface.generation": (
            "CausalAnswers",
            "TextToText",
            "causal_answers",
            "text_to_text",
        ),
        "avalanche_mgem.huggingface.loading": ("load_pretrained", "load_tokenizer"),
        "avalanche_mgem.huggingface.lora": ("IncLoRAPlugin", "LoRAPlugin", "OLoRAPlugin"),
        "avalanche_mgem.huggingface.losses": ("TokenLogits", "TokenLoss"),
        "avalanche_mgem.huggingface.magnitude_callback": ("HybridMagnitudeCallback",),
        "avalanche_mgem.huggingface.masked": ("MaskedLanguageModel", "masked_language_model"),
        "avalanche_mgem.huggingface.memory_callback": ("MGEMCallback",),
        "avalanche_mgem.huggingface.orthogonality": (
            "OrthogonalityMetric",
            "orthogonality_metrics",
            "orthogonality_penalty",
        ),
        "avalanche_mgem.huggingface.parameters": ("ParameterGroupsPlugin", "parameter_groups"),
        "avalanche_mgem.huggingface.strategy": (
            "DictBatches",
            "HuggingFaceStrategy",
            "KeywordModel",
            "by_keyword",
            "by_position",
            "with_dict_batches",
        ),
        "avalanche_mgem.streams.text.answers": ("label_words_of",),
    },
)


def __getattr__(name: str) -> object:
    if name in ("HybridMagnitudeCallback", "MGEMCallback", "MIGUCallback"):
        # A class of transformers' is underneath.
        for package in ("transformers", "accelerate"):
            require(package)
    return _find(name)
