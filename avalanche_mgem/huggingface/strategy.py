"""Avalanche strategies on batches that are dicts, as transformers' data collators make them.

    stream = ...  # data sets whose collate_fn is by_position(DataCollatorWithPadding(tokenizer))
    strategy = with_dict_batches(Replay)(model=model, optimizer=optimizer, mem_size=500)

A data set of Avalanche's adds its task labels to samples that are dicts as "targets_task_labels",
and a collator keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avalanche_mgem.arguments import instance
from avalanche_mgem.huggingface.encoders import input_embeddings, taken_names
from avalanche_mgem.streams.text.batches import Features, TextBatch

_LABELS = ("labels", "label")
_TASK_LABELS = ("task_labels", "targets_task_labels")

# Avalanche's plugins that make loaders of their own and read what comes of them by position.
_READ_BY_POSITION = {
    "AGEMPlugin",
    "BiCPlugin",
    "EWCPlugin",
    "GEMPlugin",
    "GSS_greedyPlugin",
    "MASPlugin",
    "MIRPlugin",
    "RARPlugin",
}


def text_batch(batch: Mapping[str, Any]) -> TextBatch:
    """Return a dict batch as one that answers by position too: [features, labels, task labels].

    batch: "labels" [B, ...], "task_labels" or Avalanche's "targets_task_labels" [B] (0 where there
    are none), and features, each [B, ...]; what is no tensor is left out.

    Raises:
        ValueError: there are no labels.
    """
    labels = next((batch[name] for name in _LABELS if name in batch), None)
    if labels is None:
        raise ValueError(f"a batch needs labels, got a dict with {', '.join(batch) or 'nothing'}")
    tasks = next((batch[name] for name in _TASK_LABELS if name in batch), None)
    if tasks is None:
        tasks = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    named = {*_LABELS, *_TASK_LABELS}
    features = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and name not in named
    }
    return TextBatch([Features(features), labels, torch.as_tensor(tasks)])


@dataclass(frozen=True)
class _ByPosition:
    collate_fn: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        batch = self.collate_fn(samples)
        return text_batch(batch) if isinstance(batch, Mapping) else batch


def by_position(collate_fn: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Return a collate function whose batches answer by name and by position.

    collate_fn: makes dict batches of samples, as transformers' data collators do. Give the result
    to the data sets of a stream: plugins such as EWC read their batches from the data set, not from
    the strategy, and want `batch[0]`.
    """
    if not callable(collate_fn):
        raise ValueError(f"collate_fn must be a function of samples, got {collate_fn!r}")
    return _ByPosition(collate_fn)


class KeywordModel(nn.Module):
    """A model of transformers as Avalanche calls it: features by name in, logits out.

    model: its forward takes fields by keyword and returns an output with `logits`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = instance("model", model, nn.Module, what="a torch module")

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the model's logits for features by name; those that it does not take are left out.

        Raises:
            ValueError: the model returns no logits.
        """
        names = taken_names(self.model)
        output = self.model(**{name: each for name, each in features.items() if name in names})
        if isinstance(output, Tensor):
            return output
        logits = getattr(output, "logits", None)
        if logits is None:
            raise ValueError(
                f"{type(self.model).__name__} returns no logits: take a model with an output "
                "layer, such as AutoModelForSequenceClassification, or text_classifier(model)"
            )
        found: Tensor = logits
        return found

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the model's embedding of token ids."""
        return input_embeddings(self.model)


class DictBatches:
    """Makes an Avalanche strategy take dict batches and models of transformers.

    Put before a strategy's class, `class MyReplay(DictBatches, Replay): pass`, or use
    `with_dict_batches(Replay)`, which is the same. A dict batch becomes a `TextBatch`, so that
    mb_x are the features, mb_y the labels and mb_task_id the task labels; a model of transformers
    becomes a `KeywordModel`, which strategy.model then is. Models that take the features as a dict
    (`text_classifier`) stay what they are, and so do batches that answer by position.

    Raises:
        ValueError: in training, a dict batch has no labels, or a plugin is there that reads batches
            by position from the data set; see `by_position`.
    """

    def __init__(self, *, model: nn.Module, **options: Any) -> None:
        super().__init__(model=by_keyword(model), **options)  # type: ignore[call-arg]

    def _unpack_minibatch(self: Any) -> None:
        """Turn a dict batch into one that answers by position, and move it to the device."""
        if isinstance(self.mbatch, Mapping):
            if self.is_training:
                _refuse_readers(self.plugins)
            self.mbatch = text_batch(self.mbatch)
        super()._unpack_minibatch()  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made_from = type(self).__dict__.get("_made_from")
        if made_from is None:
            return super().__reduce_ex__(protocol)
        return _empty, (made_from,), self.__dict__


def by_keyword(model: nn.Module) -> nn.Module:
    """Return a model of transformers, or of peft, as a `KeywordModel`; any other as it is."""
    instance("model", model, nn.Module, what="a torch module")
    names = {parent.__name__ for parent in type(model).__mro__}
    return KeywordModel(model) if names & {"PreTrainedModel", "PeftModel"} else model


def with_dict_batches(strategy: type[Any]) -> Any:
    """Return an Avalanche strategy's class that takes dict batches too; see `DictBatches`.

    Raises:
        ValueError: `strategy` is no class of a supervised strategy.
    """
    if not (isinstance(strategy, type) and issubclass(strategy, SupervisedTemplate)):
        raise ValueError(f"strategy must be a class such as Naive or Replay, got {strategy!r}")
    if issubclass(strategy, DictBatches):
        return strategy
    base: Any = strategy
    return _made(base)


class HuggingFaceStrategy(DictBatches, SupervisedTemplate):
    """Avalanche's SupervisedTemplate on dict batches and models of transformers; keyword-only."""


@cache
def _made(strategy: Any) -> Any:
    namespace = {"_made_from": strategy, "__doc__": strategy.__doc__, "__module__": __name__}
    return type(f"DictBatches{strategy.__name__}", (DictBatches, strategy), namespace)


def _empty(strategy: type[Any]) -> Any:
    """A strategy as pickle fills it: by the class that it was made from, which has a name."""
    made = with_dict_batches(strategy)
    return made.__new__(made)


def _refuse_readers(plugins: list[Any]) -> None:
    for plugin in plugins:
        if _READ_BY_POSITION & {parent.__name__ for parent in type(plugin).__mro__}:
            raise ValueError(
                f"{type(plugin).__name__} reads batches by position from the data set, whose "
                "collate_fn makes plain dicts: make it by_position(collate_fn)"
            )
