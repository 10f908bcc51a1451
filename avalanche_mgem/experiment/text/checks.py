"""What can be wrong with a comparison on text, found before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from avalanche.training.plugins import GEMPlugin, LwFPlugin
from torch import nn

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.experiment.building import shape_and_classes
from avalanche_mgem.experiment.configuration import RunSpecification
from avalanche_mgem.experiment.models import MLPFactory, bound_to, criterion_of
from avalanche_mgem.experiment.text.models import TextModelFactory
from avalanche_mgem.experiment.text.stream import TextStream
from avalanche_mgem.huggingface.losses import TokenLoss


@contextmanager
def missing_packages_told() -> Iterator[None]:
    """Make a ValueError of what says that a package has to be installed."""
    try:
        yield
    except ImportError as error:
        if "pip install" not in str(error):
            raise  # a mistake in the code, whose traceback is wanted
        raise ValueError(str(error)) from error


def check_forms(stream: Any, model: Any) -> None:
    """Raise ValueError unless the models are of the kind that the stream is for."""
    if isinstance(stream, TextStream) and isinstance(model, MLPFactory):
        raise ValueError(f"model={model!r} is not for text; take TextModelFactory")
    if not isinstance(model, TextModelFactory) or not isinstance(stream, TextStream):
        return
    if model.form != stream.form:
        raise ValueError(f"form={model.form!r} of the model is not the stream's, {stream.form!r}")
    if model.form == "classification" and model.heads == "multi" and not stream.task_labels:
        raise ValueError("heads='multi' needs a stream with task_labels=True")


def loaded_once(specification: RunSpecification, scenario: Any) -> RunSpecification:
    """Return the run with a model factory that loads a pre-trained model once, and copies it.

    Raises:
        ValueError: the model cannot be loaded, or cannot take what the stream's tokenizer makes.
    """
    factory, stream = specification.model, specification.stream
    if not isinstance(factory, TextModelFactory):
        return specification
    bound = bound_to(factory, scenario)
    model = bound(*shape_and_classes(scenario))
    if isinstance(stream, TextStream):
        factory.check(model, stream.tokenizer, stream.max_length)
    return replace(specification, model=_Copies(model, criterion_of(bound)))


def check_plugins(strategy: Strategy, scenario: Any) -> None:
    """Raise ValueError for a plugin of Avalanche that cannot train on texts of this form."""
    if hasattr(scenario.train_stream[0].dataset[0][0], "shape"):
        return
    in_words = isinstance(getattr(strategy, "_criterion", None), TokenLoss)
    for plugin in getattr(strategy, "plugins", ()):
        if isinstance(plugin, GEMPlugin):
            raise ValueError(
                "Avalanche's GEMPlugin joins inputs of one shape, which texts have not; mgem-p and "
                "mgem-d are GEM for texts too"
            )
        if isinstance(plugin, LwFPlugin) and in_words:
            raise ValueError("distillation needs outputs of classes, not answers in words")


@dataclass(frozen=True)
class _Copies:
    model: nn.Module
    loss: nn.Module

    def __call__(self, sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        return copy.deepcopy(self.model)

    def criterion(self) -> nn.Module:
        return self.loss
