"""Models that answer in words: trained on the tokens of the answer, judged by what they generate.

They are plain modules, for any strategy of Avalanche, with `TokenLoss` as its criterion and a
stream of `text_stream(..., form="text-to-text")` or `form="causal"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_mgem.arguments import bounded_int
from avalanche_mgem.huggingface.answers import AnswerScores, TaskLabels, left_aligned
from avalanche_mgem.huggingface.classifier import check_tokenizer
from avalanche_mgem.huggingface.loading import load_pretrained, load_tokenizer
from avalanche_mgem.huggingface.losses import TokenLogits, TokenLoss
from avalanche_mgem.streams.text.answers import IGNORED, LABELS, LabelWords
from avalanche_mgem.streams.text.forms import Form
from avalanche_mgem.streams.text.tokens import ATTENTION_MASK, INPUT_IDS

__all__ = [
    "CausalAnswers",
    "TextToText",
    "TokenLoss",
    "causal_answers",
    "model_and_tokenizer",
    "text_to_text",
]


def text_to_text(
    model: str | Path | nn.Module,
    tokenizer: Any,
    label_words: LabelWords,
    *,
    max_new_tokens: int | None = None,
    **options: Any,
) -> TextToText:
    """Return an encoder-decoder model (T5, BART) that answers in words.

    model: a name on the hub, a local folder, or a model of transformers at hand (no copy).
    tokenizer: the model's; None: that of the same name or folder. options: for `from_pretrained`.
    The rest: see `TextToText`.

    Raises:
        ValueError: no such model can be loaded, and where `TextToText` does.
        ImportError: transformers is not installed.
    """
    loaded, own = model_and_tokenizer(model, tokenizer, TextToText.auto_class, options)
    return TextToText(loaded, own, label_words, max_new_tokens=max_new_tokens)


def causal_answers(
    model: str | Path | nn.Module,
    tokenizer: Any,
    label_words: LabelWords,
    *,
    max_new_tokens: int | None = None,
    **options: Any,
) -> CausalAnswers:
    """Return a causal model (Llama, gpt2) that answers in words; arguments as `text_to_text`."""
    loaded, own = model_and_tokenizer(model, tokenizer, CausalAnswers.auto_class, options)
    return CausalAnswers(loaded, own, label_words, max_new_tokens=max_new_tokens)


class _AnswersInWords(MultiTaskModule):
    """What `TextToText` and `CausalAnswers` have in common."""

    form: ClassVar[Form]
    auto_class: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        label_words: LabelWords,
        *,
        max_new_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self._check_kind(model)
        check_tokenizer(model, tokenizer)
        scores = AnswerScores(tokenizer, label_words, form=self.form)
        self.max_new_tokens = (
            scores.longest + 1
            if max_new_tokens is None
            else bounded_int("max_new_tokens", max_new_tokens)
        )
        self.model: Any = model
        self.tokenizer = tokenizer
        self.scores = scores

    def forward(self, features: Mapping[str, Tensor], task_labels: TaskLabels = None) -> Tensor:
        """Return TokenLogits, or the scores [B, C + 1] of generated answers; see the class.

        features: input_ids, attention_mask [B, L] and, but for generation from the whole input,
        labels [B, T], the answers' tokens and -100 elsewhere.
        """
        if not self.training and not torch.is_grad_enabled():
            texts = self.generate(features)
            return self.scores.of_texts(texts, task_labels).to(features[INPUT_IDS].device)
        if LABELS not in features:
            raise ValueError(
                f"features have no {LABELS!r}: text_stream(..., form={self.form!r}) makes them"
            )
        labels = features[LABELS]
        wanted = labels != IGNORED
        logits = self._logits(features, wanted)
        targets = labels[wanted]
        with torch.no_grad():
            rows = wanted.nonzero()[:, 0]
            answers = left_aligned(labels, wanted, IGNORED)
            predicted = logits.argmax(-1)
            scores = self.scores.of_tokens(predicted, targets, rows, answers, task_labels)
        return TokenLogits(logits, targets, scores)

    def generate(self, features: Mapping[str, Tensor]) -> list[str]:
        """Return the answers that the model generates to the inputs alone, greedily."""
        inputs = self._inputs(features)
        eos = getattr(self.tokenizer, "eos_token_id", None)
        generated: Tensor = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id,
            **({} if eos is None else {"eos_token_id": eos}),
        )
        answers = self._answers(generated, inputs[INPUT_IDS].shape[1])
        texts: list[str] = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return texts

    def get_input_embeddings(self) -> nn.Module:
        """Return the model's embedding of token ids, as models of transformers do."""
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    @classmethod
    def _check_kind(cls, model: Any) -> None:
        if not hasattr(model, "generate") or not hasattr(model, "get_input_embeddings"):
            raise ValueError(
                f"model must be one of transformers that generates text, as {cls.auto_class} "
                f"loads it, got {type(model).__name__}"
            )
        has_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if has_decoder != (cls.form == "text-to-text"):
            other = CausalAnswers if cls is TextToText else TextToText
            raise ValueError(
                f"{type(model).__name__} is not for {cls.__name__} but for {other.__name__}"
            )

    def _logits(self, features: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        """Return the logits [N, V] of the N positions of wanted [B, T], row after row."""
        raise NotImplementedError

    def _inputs(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the input_ids and attention_mask to generate from."""
        raise NotImplementedError

    def _answers(self, generated: Tensor, n_inputs: int) -> Tensor:
        """Return the tokens that are new."""
        raise NotImplementedError


class TextToText(_AnswersInWords):
    """An encoder-decoder model of transformers (T5, BART) that answers in words.

    Where gradients are recorded, and in training mode, its output is `TokenLogits`: the logits of
    the answers' tokens, each after the right ones before it. In eval mode under torch.no_grad(), as
    strategies evaluate, it generates its answers, greedily, and the output is their scores
    [B, C + 1]: 1 at the class whose label word the answer is, but for case and outer spaces, the
    last column where it is none.

    Args:
        model: of transformers.
        tokenizer: the one that the stream was made with.
        label_words: {class: word}, or {task label: {class: word}} where the words of a class differ
            by task; `label_words_of(scenario)` has them.
        max_new_tokens: of an answer; None: those of the longest label word and one more.

    Raises:
        ValueError: a model of another kind, a tokenizer that does not fit (no padding token, more
            ids than the model has embeddings), label words that cannot be told apart.
    """

    form = "text-to-text"
    auto_class = "AutoModelForSeq2SeqLM"

    def _logits(self, features: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        # With labels the model shifts them itself, each kind of model in its own way.
        output = self.model(**self._inputs(features), labels=features[LABELS], use_cache=False)
        logits: Tensor = output.logits[wanted]
        return logits

    def _inputs(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: features[name] for name in (INPUT_IDS, ATTENTION_MASK)}

    def _answers(self, generated: Tensor, n_inputs: int) -> Tensor:
        return generated


class CausalAnswers(_AnswersInWords):
    """A causal model of transformers (Llama, gpt2) that answers in words; see `TextToText`.

    It answers after the source, where "labels" is -100: padding may be on the right, as streams
    have it; for generation it is moved to the left.
    """

    form = "causal"
    auto_class = "AutoModelForCausalLM"

    def _logits(self, features: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        # The token at j is foretold at j - 1.
        foretold = wanted[:, 1:]
        if bool(wanted[:, 0].any()):
            raise ValueError(
                "features['labels'] must be -100 on the first token, which nothing foretells: the "
                "labels are those of the answer only"
            )
        # Logits of a large vocabulary are worth leaving out where nobody asks for them.
        columns = foretold.any(0).nonzero()[:, 0]
        inputs = {name: features[name] for name in (INPUT_IDS, ATTENTION_MASK)}
        if _keeps_logits(self.model):
            logits: Tensor = self.model(**inputs, logits_to_keep=columns, use_cache=False).logits
        else:
            logits = self.model(**inputs, use_cache=False).logits[:, columns]
        return logits[foretold[:, columns]]

    def _inputs(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The source alone, padded on the left: what is new comes at the end of each row."""
        source = features[ATTENTION_MASK] != 0
        if LABELS in features:
            source &= features[LABELS] == IGNORED
        ids = features[INPUT_IDS].flip(1)
        padding = int(self.tokenizer.pad_token_id)
        turned = left_aligned(ids, source.flip(1), padding)
        mask = left_aligned(torch.ones_like(ids), source.flip(1), 0)
        return {INPUT_IDS: turned.flip(1), ATTENTION_MASK: mask.flip(1)}

    def _answers(self, generated: Tensor, n_inputs: int) -> Tensor:
        return generated[:, n_inputs:]


def _keeps_logits(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def model_and_tokenizer(
    model: str | Path | nn.Module, tokenizer: Any, auto_class: str, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Return a model and its tokenizer, each by its name or as it is.

    tokenizer: None is the model's own, where the model is a name. options: for `from_pretrained`.

    Raises:
        ValueError: what cannot be loaded, or a model at hand without a tokenizer.
    """
    if isinstance(model, str | Path):
        tokenizer = model if tokenizer is None else tokenizer
        model = load_pretrained(model, auto_class, **options)
    if tokenizer is None:
        raise ValueError("tokenizer=None needs a model by its name or folder; give the tokenizer")
    return model, load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
