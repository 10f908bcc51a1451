"""What can be wrong with a comparison, found before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import JointTraining

from avalanche_mgem.bridge.strategy import Strategy
from avalanche_mgem.experiment.building import build_strategy
from avalanche_mgem.experiment.configuration import RunSpecification, Training
from avalanche_mgem.experiment.early import REFUSALS, check_settings, refusal
from avalanche_mgem.experiment.run import SilentLogger, quiet_avalanche
from avalanche_mgem.experiment.text.checks import (
    check_forms,
    check_plugins,
    loaded_once,
    missing_packages_told,
)
from avalanche_mgem.huggingface.lora import LoRAPlugin
from avalanche_mgem.methods.combination import Combination
from avalanche_mgem.methods.method import Method
from avalanche_mgem.model.randomness import preserved_random_state
from avalanche_mgem.plugins import HybridMagnitudePlugin, MGEMPlugin, MIGUPlugin

# Plugins that name parts of the model.
_NAMING_PARTS = LoRAPlugin | MGEMPlugin | MIGUPlugin | HybridMagnitudePlugin


def check_runs(specifications: Sequence[RunSpecification]) -> None:
    """Make the stream of the first run, and every method's strategy on it; train nothing.

    The global random states are left as they were.

    Raises:
        ValueError: a device that is not there, a stream that cannot be trained on, a setting that
            the method refuses (METHOD.SETTING), a partition or target modules that do not fit the
            model, a tokenizer that does not, a package that is not installed.
    """
    if not specifications:
        return
    first = specifications[0]
    check_device(first.training.device)
    check_precision(first.training)
    check_forms(first.stream, first.model)
    with preserved_random_state(), quiet_avalanche(), missing_packages_told():
        scenario = first.scenario()
        model = loaded_once(first, scenario).model
        for specification in {s.method.name: s for s in specifications}.values():
            _check_method(replace(specification, model=model), scenario)


def check_device(name: str) -> None:
    """Raise ValueError unless models can be trained on the torch device of this name."""
    try:
        device = torch.device(name)
        if device.type == "cuda":
            # Asked, not tried: trying would hold the device's memory as long as this process lives.
            count = torch.cuda.device_count()
            if (device.index or 0) >= count:
                raise ValueError(f"torch sees {count} CUDA devices")
        elif torch.zeros(1, device=device).sum().item() != 0.0:
            raise ValueError("it cannot add")
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ValueError(f"device={name!r} cannot be used here: {reason}") from error


def check_precision(training: Training) -> None:
    """Raise ValueError unless torch can train in the precision on the device."""
    kind = torch.device(training.device).type
    if training.precision is not None and not torch.amp.is_autocast_available(kind):
        raise ValueError(
            f"precision={training.precision!r} cannot be had on device={training.device!r}: torch "
            "has no autocast there"
        )


def _check_method(specification: RunSpecification, scenario: Any) -> None:
    method, budget = specification.method, specification.training.memory
    check_settings(method, budget, len(scenario.train_stream))
    try:
        strategy = build_strategy(
            specification, scenario, EvaluationPlugin(loggers=[SilentLogger()])
        )
        if isinstance(strategy, JointTraining) and not method.whole_stream:
            raise ValueError("JointTraining trains once: give the method whole_stream=True")
        check_plugins(strategy, scenario)
        _check_layers(method, strategy, scenario.train_stream[0])
    except REFUSALS as error:
        raise ValueError(refusal(method, budget, error)) from error


def _check_layers(method: Method, strategy: Strategy, experience: Any) -> None:
    """Let the plugins that name parts of the model find them, after those that add parts."""
    strategy.experience = experience
    plugins = getattr(strategy, "plugins", ())
    for event in ("before_train_dataset_adaptation", "before_training_exp"):
        for index, plugin in enumerate(plugins):
            if isinstance(plugin, _NAMING_PARTS):
                with _part_named(method, index):
                    getattr(plugin, event)(strategy)


def _part_named(method: Method, index: int) -> AbstractContextManager[None]:
    parts = method.strategy.parts if isinstance(method.strategy, Combination) else ()
    if index < len(parts) and isinstance(method.strategy, Combination):
        return method.strategy.named(parts[index])
    return nullcontext()
