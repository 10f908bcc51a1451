"""Models of transformers for text streams, by name or folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from avalanche_mgem.arguments import one_of
from avalanche_mgem.experiment.digests import (
    answering_model_digest,
    model_digest,
    tokenizer_digest,
)
from avalanche_mgem.experiment.text.stream import described_by_name
from avalanche_mgem.huggingface.choices import Heads, Pooling
from avalanche_mgem.huggingface.loading import checked_name, load_tokenizer
from avalanche_mgem.lazy import Lazy
from avalanche_mgem.streams.text.forms import FORMS, Form

if TYPE_CHECKING:
    from torch import nn

_MAKERS = {
    "classification": Lazy("avalanche_mgem.huggingface.classifier:text_classifier"),
    "text-to-text": Lazy("avalanche_mgem.huggingface.generation:text_to_text"),
    "causal": Lazy("avalanche_mgem.huggingface.generation:causal_answers"),
}


@dataclass(frozen=True)
class TextModelFactory:
    """Makes models for text streams of a pre-trained one, which is loaded at each call.

    Called with the shape of a sample, of which it makes no use, and the number of classes.

    Args:
        model: a name on the hub, or a local folder.
        form: "classification", an output layer on the pooled tokens, see `text_classifier`; or
            "text-to-text" and "causal", for models that answer in words. As the stream's.
        heads: "multi", a head for each task label; "growing"; "single". For classification only.
        pooling: what stands for a text, see `text_classifier`. For classification only.
        tokenizer: a name or folder, for models that answer in words; None: the model's own. It must
            turn texts into the same ids as the stream's, wherever either lies.
        label_words: what the classes are called, for models that answer in words; `for_scenario`
            finds them.

    Raises:
        ValueError: an unknown form, heads or pooling; no name; label_words of another form.
    """

    model: str
    form: Form = "classification"
    heads: Heads = "multi"
    pooling: Pooling = "auto"
    tokenizer: str | None = None
    label_words: Any = None

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)
        one_of("heads", self.heads, get_args(Heads))
        one_of("pooling", self.pooling, get_args(Pooling))
        checked_name("model", self.model)
        if self.tokenizer is not None:
            checked_name("tokenizer", self.tokenizer)
        if self.label_words is not None:
            from avalanche_mgem.huggingface.answers import words_by_task

            words_by_task(self.label_words)

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages whose versions decide the model."""
        return ("transformers",)

    def for_scenario(self, scenario: Any) -> TextModelFactory:
        """Return the factory that knows what the classes of a text stream are called."""
        if self.form == "classification":
            return self
        from avalanche_mgem.streams.text.answers import label_words_of

        return replace(self, label_words=label_words_of(scenario))

    def __call__(self, sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """Return a new model; what it adds to the pre-trained one is drawn from torch's state."""
        made: nn.Module
        if self.form != "classification":
            if not isinstance(self.label_words, Mapping):
                raise ValueError(f"form={self.form!r} needs label_words; see for_scenario")
            made = _MAKERS[self.form](self.model, self._tokenizer(), self.label_words)
            return made
        # A head for each task gets as many outputs as the task has classes.
        classes = None if self.heads == "multi" else n_classes
        made = _MAKERS[self.form](
            self.model, heads=self.heads, n_classes=classes, pooling=self.pooling
        )
        return made

    def criterion(self) -> nn.Module:
        """Return the loss that goes with the form."""
        from torch import nn

        from avalanche_mgem.huggingface.losses import TokenLoss

        return nn.CrossEntropyLoss() if self.form == "classification" else TokenLoss()

    def check(self, model: nn.Module, tokenizer: str, max_length: int) -> None:
        """Raise ValueError unless a model made here can take what the stream's tokenizer makes."""
        from avalanche_mgem.huggingface.classifier import check_tokenizer

        streams = load_tokenizer(tokenizer)
        check_tokenizer(model, streams, max_length=max_length)
        if self.form == "classification" or tokenizer == (self.tokenizer or self.model):
            return
        if _ids(self._tokenizer()) != _ids(streams):
            raise ValueError(
                f"tokenizer={self.tokenizer or self.model!r} of the model has other ids than the "
                f"stream's, {tokenizer!r}: a model that answers in words needs the same"
            )

    def description(self) -> dict[str, Any]:
        """Return what decides the model, as JSON values; of a local folder, what it holds."""
        in_words = self.form != "classification"
        digest = answering_model_digest if in_words else model_digest
        described: dict[str, Any] = {
            "type": "TextModelFactory",
            **described_by_name(self.model, digest),
            "form": self.form,
        }
        if not in_words:
            described |= {"heads": self.heads, "pooling": self.pooling}
        elif self.tokenizer is not None:
            described["tokenizer"] = described_by_name(self.tokenizer, tokenizer_digest)
        return described

    def _tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer or self.model)


def _ids(tokenizer: Any) -> dict[str, Any]:
    """Which ids a tokenizer has, for texts and for what is not text."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    return {"texts": tokenizer.get_vocab(), **{n: getattr(tokenizer, n, None) for n in special}}
