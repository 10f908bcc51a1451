"""A method's strategy for a scenario, trained as a comparison says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from avalanche_mgem.bridge.accumulation import with_gradient_accumulation
from avalanche_mgem.bridge.precision import with_mixed_precision
from avalanche_mgem.evaluation import EvaluateEvery
from avalanche_mgem.experiment.configuration import RunSpecification, Training
from avalanche_mgem.experiment.models import bound_to, criterion_of
from avalanche_mgem.experiment.scheduling import ScheduleEachExperience
from avalanche_mgem.lazy import resolved
from avalanche_mgem.methods.combination import Combination
from avalanche_mgem.plugins.clipping import ClipGradientPlugin
from avalanche_mgem.streams.text import LengthBuckets


def build_strategy(specification: RunSpecification, scenario: Any, evaluator: Any) -> Any:
    """Return the method's strategy with a new model for the scenario's samples and classes.

    Raises:
        ValueError: the model factory returns something else; what the strategy refuses; a precision
            or accumulation that it cannot be trained with.
    """
    training, method = specification.training, specification.method
    factory = bound_to(specification.model, scenario)
    model = factory(*shape_and_classes(scenario))
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must return a torch.nn.Module, got {type(model).__name__}")
    return _wrapped(method.strategy, training)(
        model=model,
        optimizer=_optimizer(training, model),
        criterion=criterion_of(factory),
        train_mb_size=training.batch_size,
        train_epochs=training.epochs,
        eval_mb_size=training.eval_batch_size,
        device=training.device,
        evaluator=evaluator,
        **_plugins(specification.training, specification.seed, scenario),
        **_options(training),
        **method.resolved_settings(training.memory, len(scenario.train_stream)),
    )


def shape_and_classes(scenario: Any) -> tuple[tuple[int, ...], int]:
    """Return what model factories are called with: a sample's shape and the number of classes."""
    sample = scenario.train_stream[0].dataset[0][0]
    # A small training stream may lack classes that are tested.
    experiences = [*scenario.train_stream, *scenario.test_stream]
    labels = (max(experience.classes_in_this_experience) for experience in experiences)
    # A text is a mapping of token ids, whose number differs from text to text.
    return tuple(getattr(sample, "shape", ())), int(max(labels)) + 1


def _wrapped(strategy: Any, training: Training) -> Any:
    """Return the strategy, or what makes it train in half precision or in micro-batches."""
    if isinstance(strategy, Combination):
        return replace(strategy, base=_wrapped(strategy.base, training))
    for name, usual, wrapper in (
        ("precision", None, with_mixed_precision),
        ("accumulate", 1, with_gradient_accumulation),
    ):
        value = getattr(training, name)
        if value == usual:
            continue
        try:
            strategy = wrapper(resolved(strategy))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}={value!r}: {error}") from error
    return strategy


def _options(training: Training) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if training.precision is not None:
        options["precision"] = training.precision
    if training.accumulate > 1:
        options["micro_batch_size"] = -(-training.batch_size // training.accumulate)
    return options


def _plugins(training: Training, seed: int, scenario: Any) -> dict[str, Any]:
    """The comparison's own plugins; none is said where there is none, for strategies of users."""
    plugins: list[Any] = []
    if training.length_buckets is not None:
        plugins.append(LengthBuckets(window=training.length_buckets, seed=seed))
    if training.schedule is not None:
        plugins.append(ScheduleEachExperience(training.schedule))
    if training.clip is not None:
        plugins.append(ClipGradientPlugin(training.clip))
    if training.eval_every is not None:
        plugins.append(EvaluateEvery(training.eval_every, scenario.test_stream))
    return {"plugins": plugins} if plugins else {}


def _optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        momentum = training.momentum
        return torch.optim.SGD(model.parameters(), rate, momentum=momentum, weight_decay=decay)
    if training.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), rate, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
