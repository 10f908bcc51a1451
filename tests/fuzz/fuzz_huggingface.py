"""What the part for transformers takes."""

from functools import partial
from inspect import signature

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive, Replay
from fuzz_plugins import ANY_HEADS, HYBRID, MGEM, MIGU
from fuzz_pure import (
    ANY_STRING,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    SIZE,
    one_of,
    optional,
)
from fuzz_values import Fresh, Target, kind
from huggingface.answer_cases import make_llama, make_roberta, make_t5, make_tokenizer
from tiny import make_model, sgd
from torch import nn
from transformers import BertConfig, BertModel

import avalanche_mgem.huggingface as hf
from avalanche_mgem.huggingface.callback import MIGUCallback
from avalanche_mgem.huggingface.magnitude_callback import HybridMagnitudeCallback
from avalanche_mgem.huggingface.memory_callback import MGEMCallback


def _bert():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return BertModel(BertConfig(vocab_size=30, num_attention_heads=2, **sizes))


_TOKENIZER = make_tokenizer()
_T5, _LLAMA, _ROBERTA, _BERT = make_t5(), make_llama(), make_roberta(), _bert()
_WORDS = kind({0: "red", 1: "green"}, {0: {0: "red"}, 1: {0: "cat", 1: "dog"}})
_MODULE = kind(nn.Linear(2, 2), Fresh(lambda: nn.Sequential(nn.Linear(2, 2))))
_ANSWERS = {
    "tokenizer": kind(_TOKENIZER),
    "label_words": _WORDS,
    "max_new_tokens": optional(SIZE),
}
_LORA = {
    "rank": SIZE,
    "alpha": POSITIVE,
    "dropout": SHARE,
    "target_modules": MIGU["target_modules"],
    "train_heads": FLAG,
    "heads": ANY_HEADS,
    "seed": MIGU["seed"],
}
_ONE = torch.zeros(1, 2)
_MODEL = make_model()
_TENSORS = "tensor []|tensor nan|tensor [0]|tensor [2]|tensor [2, 2]|tensor int|tensor bool"


def write_files():
    """Put what the names above stand for into the current folder."""
    _BERT.save_pretrained("model")
    _TOKENIZER.save_pretrained("tokenizer")


HUGGINGFACE = {
    "CausalAnswers": Target(hf.CausalAnswers, {"model": kind(_LLAMA), **_ANSWERS}),
    "TextToText": Target(hf.TextToText, {"model": kind(_T5), **_ANSWERS}),
    "causal_answers": Target(hf.causal_answers, {"model": kind(_LLAMA), **_ANSWERS}),
    "text_to_text": Target(hf.text_to_text, {"model": kind(_T5), **_ANSWERS}),
    "MaskedLanguageModel": Target(
        hf.MaskedLanguageModel,
        {
            "model": kind(_ROBERTA),
            "tokenizer": kind(_TOKENIZER),
            "mask_share": kind(0.5, 1, np.float32(0.5), may="1|0.5|1e-320|Fraction|np.float32"),
            "seed": SEED,
        },
    ),
    "masked_language_model": Target(
        partial(hf.masked_language_model, tokenizer=_TOKENIZER),
        {
            "model": kind(_ROBERTA),
            "tokenizer": kind(_TOKENIZER),
            "mask_share": kind(0.5, 1, np.float32(0.5), may="1|0.5|1e-320|Fraction|np.float32"),
            "seed": SEED,
        },
    ),
    "TextClassifier": Target(
        hf.TextClassifier,
        {
            "encoder": kind(_BERT),
            "classifier": _MODULE,
            "pooling": one_of("mean", "first", "last", "pooler"),
            "dropout": SHARE,
        },
    ),
    "text_classifier": Target(
        hf.text_classifier,
        {
            "model": kind(Fresh(_bert)),
            "heads": kind("multi", "growing", more={"near": "multiple"}),
            "n_classes": optional(SIZE),
            "pooling": one_of("auto", "mean", "first", "last", "pooler"),
            "dropout": optional(SHARE),
        },
    ),
    "check_tokenizer": Target(
        hf.check_tokenizer,
        {
            "model": kind(_ROBERTA),
            "tokenizer": kind(_TOKENIZER),
            "max_length": kind(None, 8, np.int64(8), may="None|1|3|np.int64|np.uint8"),
        },
    ),
    "load_pretrained": Target(
        hf.load_pretrained,
        {
            "model": kind("model"),
            "kind": kind("AutoModel", "AutoConfig"),
            "argument": kind("model", may=ANY_STRING),
        },
    ),
    "load_tokenizer": Target(
        hf.load_tokenizer,
        {"tokenizer": kind("tokenizer"), "argument": kind("tokenizer", may=ANY_STRING)},
    ),
    "LoRAPlugin": Target(hf.LoRAPlugin, _LORA),
    "IncLoRAPlugin": Target(hf.IncLoRAPlugin, _LORA),
    "OLoRAPlugin": Target(
        hf.OLoRAPlugin,
        {
            "orthogonality": NOT_NEGATIVE,
            "norm_penalty": NOT_NEGATIVE,
            "penalty": one_of("absolute", "squared"),
            **_LORA,
        },
    ),
    "OrthogonalityMetric": Target(hf.OrthogonalityMetric, {"minibatch": FLAG}),
    "orthogonality_metrics": Target(hf.orthogonality_metrics, {"minibatch": FLAG}),
    "orthogonality_penalty": Target(
        hf.orthogonality_penalty, {"model": _MODULE, "penalty": one_of("absolute", "squared")}
    ),
    "MIGUCallback": Target(
        MIGUCallback,
        {k: v for k, v in MIGU.items() if k in signature(MIGUCallback).parameters},
    ),
    "HybridMagnitudeCallback": Target(
        HybridMagnitudeCallback,
        {
            **{
                k: v
                for k, v in HYBRID.items()
                if k in signature(HybridMagnitudeCallback).parameters
            },
            "probe_head": one_of("own", "auto"),
        },
    ),
    "MGEMCallback": Target(
        MGEMCallback,
        {
            "patterns_per_task": MGEM["patterns_per_experience"],
            **{k: v for k, v in MGEM.items() if k in signature(MGEMCallback).parameters},
        },
    ),
    "ParameterGroupsPlugin": Target(
        hf.ParameterGroupsPlugin, {"rule": kind(lambda model: [], may="a class|a function")}
    ),
    "parameter_groups": Target(
        hf.parameter_groups,
        {
            "model": kind(make_model()),
            "weight_decay": NOT_NEGATIVE,
            "learning_rate": optional(NOT_NEGATIVE),
            "head_learning_rate": optional(NOT_NEGATIVE),
            "no_decay": kind(("bias",), [], may="[]|()|['x']|set|np []|tensor [0]"),
            "heads": ANY_HEADS,
        },
    ),
    "KeywordModel": Target(hf.KeywordModel, {"model": _MODULE}),
    "by_keyword": Target(hf.by_keyword, {"model": _MODULE}),
    "by_position": Target(
        hf.by_position, {"collate_fn": kind(lambda samples: {}, may="a class|a function")}
    ),
    "TokenLogits": Target(
        hf.TokenLogits,
        {
            "logits": kind(_ONE, may=_TENSORS),
            "targets": kind(torch.zeros(1, dtype=torch.int64), may=_TENSORS),
            "scores": kind(_ONE, may=_TENSORS),
        },
    ),
    "TokenLoss": Target(hf.TokenLoss, {}),
    "with_dict_batches": Target(hf.with_dict_batches, {"strategy": kind(Naive, Replay)}),
    "HuggingFaceStrategy": Target(
        partial(hf.HuggingFaceStrategy, optimizer=sgd(_MODEL), evaluator=EvaluationPlugin()),
        {"model": kind(_MODEL)},
    ),
}
