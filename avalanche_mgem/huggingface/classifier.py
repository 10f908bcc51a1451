"""Sequence classification by an encoder of transformers and output heads that may grow."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, get_args

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn

from avalanche_mgem.arguments import bounded_int, finite, instance, one_of
from avalanche_mgem.huggingface.choices import Heads, Pooling
from avalanche_mgem.huggingface.encoders import (
    counts_positions,
    encoder_inputs,
    input_embeddings,
    is_causal,
    position_embedding,
    text_encoder,
    without_pooler,
)

_FIRST_OUTPUTS = 2  # Avalanche's
_DROPOUTS = ("classifier_dropout", "hidden_dropout_prob", "dropout_rate", "resid_pdrop", "dropout")


def text_classifier(
    model: str | Path | nn.Module,
    *,
    heads: Heads = "multi",
    n_classes: int | None = None,
    pooling: Pooling = "auto",
    dropout: float | None = None,
) -> TextClassifier:
    """Return a classifier of texts: an encoder, pooling over tokens, dropout and an output layer.

    Args:
        model: a name on the hub, a local folder, or a model of transformers at hand, of which the
            body is used (no copy). Of an encoder-decoder model (T5) that is the encoder.
        heads: "multi", a head for each task label; "growing", one head that gets outputs as
            classes come; "single", one of n_classes outputs. Outputs of classes that a growing
            head, or a task's own, has not been trained on are masked.
        n_classes: for "single", the number of outputs. For "multi", those that a head begins with,
            2 by default; a task of more classes gets more. "growing" makes no use of it.
        pooling: what stands for a text. "mean": the mean of its tokens; "first": the first token,
            BERT's [CLS]; "last": the last token; "pooler": the model's own pooler. "auto": "last"
            for causal models (Llama, gpt2), whose last token alone has seen all others, "mean" for
            all others, those with a pooler among them: as one trains on what comes after it, a
            pooler made for next-sentence prediction is no better start than a mean. Padding is
            never counted, and may be on either side (on the right only for BART's kin and, before
            transformers 5, DistilBERT, which take no positions). Funnel and CANINE, which shorten
            texts on the way, see the padding themselves. A pooler that is not used is taken off the
            model.
        dropout: on the pooled vector; None: what the model's configuration says for its classifier
            or for its hidden layers.

    Raises:
        ValueError: an argument is out of range, or no model can be loaded by that name.
        ImportError: transformers is not installed.
    """
    one_of("heads", heads, get_args(Heads))
    one_of("pooling", pooling, get_args(Pooling))
    if n_classes is not None:
        n_classes = bounded_int("n_classes", n_classes)
    elif heads == "single":
        raise ValueError("heads='single' needs n_classes, the number of outputs; got None")
    encoder = text_encoder(model)
    if pooling == "auto":
        pooling = "last" if is_causal(encoder.config) else "mean"
    if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
        raise ValueError(f"pooling='pooler': {type(encoder).__name__} has no pooler; take 'mean'")
    if pooling != "pooler":
        without_pooler(encoder)
    rate = _dropout_of(encoder.config) if dropout is None else finite("dropout", dropout, minimum=0)
    if rate >= 1:
        raise ValueError(f"dropout must be below 1, got {dropout!r}")
    kind = _MultiHeadTextClassifier if heads == "multi" else TextClassifier
    head = _head(heads, _width(encoder.config), n_classes)
    return kind(encoder, head, pooling=pooling, dropout=rate)


class TextClassifier(nn.Module):
    """An encoder of transformers and a classifier of its pooled output; see `text_classifier`.

    encoder: the model of transformers. classifier: the head, which may be many.
    """

    def __init__(
        self, encoder: nn.Module, classifier: nn.Module, *, pooling: str, dropout: float
    ) -> None:
        super().__init__()
        instance("encoder", encoder, nn.Module, what="a model of transformers")
        instance("classifier", classifier, nn.Module, what="a torch module")
        one_of("pooling", pooling, [name for name in get_args(Pooling) if name != "auto"])
        if finite("dropout", dropout, minimum=0) >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout!r}")
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier
        self.pooling = pooling
        self._give_positions = not counts_positions(encoder)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits [B, C] of features by name, each [B, L]; only those it knows are used."""
        logits: Tensor = self.classifier(self.pooled(features))
        return logits

    def pooled(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return what stands for each text [B, H], after dropout; in the dtype of the heads.

        Raises:
            ValueError: the encoder leaves fewer states than there are tokens, as FunnelBaseModel.
        """
        inputs = encoder_inputs(self.encoder, features, positions=self._give_positions)
        outputs = self.encoder(**inputs)
        mask = features.get("attention_mask")
        if self.pooling == "pooler":
            vector: Tensor = outputs.pooler_output
        else:
            vector = _pooled(outputs.last_hidden_state, mask, self.pooling)
        # A body in half precision may have heads in float32.
        dropped: Tensor = self.dropout(vector)
        return dropped.to(next(self.classifier.parameters()).dtype)

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's embedding of token ids, as models of transformers do."""
        return input_embeddings(self.encoder)


class _MultiHeadTextClassifier(TextClassifier, MultiTaskModule):
    """A head for each task label. As a MultiTaskModule it gets the task labels from Avalanche."""

    def forward(  # type: ignore[override]
        self, features: Mapping[str, Tensor], task_labels: Tensor | int | None
    ) -> Tensor | dict[int, Tensor]:
        """Return the logits of each text's head [B, C]; for None those of all heads, by task."""
        logits: Tensor | dict[int, Tensor] = self.classifier(self.pooled(features), task_labels)
        return logits

    def forward_single_task(self, features: Mapping[str, Tensor], task_label: int) -> Tensor:
        """Return the logits of one task's head [B, C]."""
        logits: Tensor = self.classifier(self.pooled(features), task_label)
        return logits


class _TaskHeads(MultiHeadClassifier):
    """Heads of different sizes, in one tensor: what a head lacks is masked.

    Avalanche's own fills up with zeros, which in the softmax of a small head are classes like any
    other; and it cannot index by the set of classes that its own benchmarks give an experience.
    """

    def adaptation(self, experience: Any) -> None:
        """Add a head for a task label that is new, and outputs for classes that are."""
        classes = experience.classes_in_this_experience
        if not isinstance(classes, list):
            experience = copy(experience)
            experience.classes_in_this_experience = sorted(classes)
        super().adaptation(experience)

    def forward(
        self, x: Tensor, task_labels: Tensor | int | None
    ) -> Tensor | dict[int, Tensor] | Any:
        """Return [B, C] of features [B, H], C the outputs of the largest head."""
        if not isinstance(task_labels, Tensor):
            return super().forward(x, task_labels)
        logits = x.new_full((len(x), self.max_class_label), float(self.mask_value))
        for task in torch.unique(task_labels).tolist():
            if str(task) not in self.classifiers:
                raise ValueError(
                    f"no head for the task label {task}: known are {', '.join(self.classifiers)}; "
                    "Avalanche adds one as an experience of the task is trained or evaluated"
                )
            rows = task_labels == task
            outputs = self.forward_single_task(x[rows], task)
            # Autocast makes the outputs of another dtype than x.
            logits[rows, : outputs.shape[1]] = outputs.to(logits.dtype)
        return logits


def check_tokenizer(model: nn.Module, tokenizer: Any, *, max_length: int | None = None) -> None:
    """Check that a model can take what a tokenizer makes.

    model: a model of transformers or a `TextClassifier`. tokenizer: of transformers, or with the
    same attributes. max_length: of the texts, in tokens; None is not checked.

    Raises:
        ValueError: there are ids that the model has no embedding for, no id for padding (or not
            the model's, where the model finds its positions by it), or fewer positions than tokens.
    """
    if not hasattr(model, "get_input_embeddings") or isinstance(model, type):
        raise ValueError(f"model must be one of transformers, got {type(model).__name__}")
    if max_length is not None:
        bounded_int("max_length", max_length)
    embeddings: Any = input_embeddings(model)
    size: int = embeddings.num_embeddings
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    try:
        ids = _number_of_ids(tokenizer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer {name!r} does not tell its ids: {error}") from error
    if ids > size:
        raise ValueError(
            f"tokenizer {name!r} has ids up to {ids - 1}, but the model has embeddings for "
            f"{size} only: take the model's own tokenizer, or model.resize_token_embeddings({ids})"
        )
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None:
        raise ValueError(
            f"tokenizer {name!r} has no padding token: set one, such as "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    positions = position_embedding(model)
    if positions is None:
        return
    own = positions.padding_idx
    if own is not None and own != padding:
        raise ValueError(
            f"tokenizer {name!r} pads with the id {padding}, but the model numbers its positions "
            f"by the padding id {own}: take the model's own tokenizer"
        )
    # Some (BART, OPT) leave the first few out by an offset, and have no padding id.
    first = getattr(positions, "offset", 0) if own is None else own + 1
    most = positions.num_embeddings - int(first)
    if max_length is not None and max_length > most:
        raise ValueError(f"max_length={max_length}: the model has positions for {most} tokens")


def _number_of_ids(tokenizer: Any) -> int:
    if hasattr(tokenizer, "get_vocab"):
        return 1 + max(tokenizer.get_vocab().values(), default=-1)
    if hasattr(tokenizer, "__len__"):
        return len(tokenizer)
    return int(getattr(tokenizer, "vocab_size", 0))


def _pooled(states: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Return [B, H] of states [B, L, H] and a mask [B, L], True or 1 at tokens."""
    if mask is None:
        return {"first": states[:, 0], "last": states[:, -1], "mean": states.mean(1)}[pooling]
    if states.shape[:2] != mask.shape:
        raise ValueError(
            f"the encoder returns states of shape {tuple(states.shape)} for tokens of shape "
            f"{tuple(mask.shape)}: pooling={pooling!r} needs a state for each token; take a model "
            "with one, such as FunnelModel in place of FunnelBaseModel, or pooling='pooler'"
        )
    rows = torch.arange(len(states), device=states.device)
    places = torch.arange(states.shape[1], device=states.device)
    if pooling == "last":
        return states[rows, (mask * (places + 1)).argmax(1)]
    if pooling == "first":
        return states[rows, (mask * (len(places) - places)).argmax(1)]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _head(heads: str, width: int, n_classes: int | None) -> nn.Module:
    if heads == "multi":
        return _TaskHeads(width, initial_out_features=n_classes or _FIRST_OUTPUTS)
    if heads == "growing":
        head: nn.Module = IncrementalClassifier(width, _FIRST_OUTPUTS)
        return head
    return nn.Linear(width, n_classes or 0)


def _width(config: Any) -> int:
    # OPT may project its last states to the width of its embeddings.
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _dropout_of(config: Any) -> float:
    rates = (getattr(config, name, None) for name in _DROPOUTS)
    return next((float(rate) for rate in rates if rate is not None), 0.0)
