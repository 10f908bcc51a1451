"""Everything a run is started with, and the key that tells one configuration from another."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import as_text, device_name, finite, flag, one_of, positive_int
from avalanche_mgem.experiment.fixed_stream import FixedStream
from avalanche_mgem.experiment.models import MLPFactory, ModelFactory
from avalanche_mgem.experiment.schedules import SCHEDULES
from avalanche_mgem.experiment.text.models import TextModelFactory
from avalanche_mgem.experiment.text.stream import TextStream
from avalanche_mgem.files import file_digest
from avalanche_mgem.methods.combination import Combination
from avalanche_mgem.methods.method import Method
from avalanche_mgem.results.describe import describe
from avalanche_mgem.results.file_names import file_name
from avalanche_mgem.streams.checking import check_stream
from avalanche_mgem.streams.naming import (
    make_stream,
    parse_stream_name,
    stream_files,
    stream_folder,
)

_PACKAGES = ("avalanche-mgem", "avalanche-lib", "torch", "torchvision", "quadprog", "numpy")
OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("bf16", "fp16")
_CAME_LATER = (
    "optimizer",
    "momentum",
    "weight_decay",
    "length_buckets",
    "validation",
    "eval_every",
    "precision",
    "accumulate",
    "clip",
    "schedule",
    "augment",
)  # so that older keys stay what they were
_PLACES = ("data_root", "download")  # where the data lies decides nothing


@dataclass(frozen=True)
class Training:
    """How every method trains.

    Args:
        learning_rate: of the optimiser.
        batch_size: training minibatch.
        epochs: passes over each experience.
        eval_batch_size: minibatch of the evaluation; it changes no result.
        device: a torch device.
        memory: patterns kept of each experience by the methods that have a memory.
        optimizer: "sgd", "adam" or "adamw", as torch has them.
        momentum: of SGD, in [0, 1).
        weight_decay: >= 0.
        validation: share of each experience's training data that is held out and scored on, in
            [0, 1): drawn with the seed, each class in proportion, see `draw_share`. So settings can
            be chosen without the test data. 0: none.
        length_buckets: train on batches of texts of similar length, for text streams: the window
            of `LengthBuckets`, in batches. None: batches are drawn as Avalanche draws them.
        eval_every: evaluate every so many iterations too, for the stability gap, see
            `EvaluateEvery`; training goes as without. None: after each experience alone.
        precision: "bf16" or "fp16": half precision, see `MixedPrecision`. None: the model's own.
        accumulate: each minibatch goes through the model in at most so many parts, with one step
            all the same, see `GradientAccumulation`; `batch_size` at the most. A minibatch that a
            memory makes longer goes through in parts of the same size. 1: whole.
        clip: norm to clip gradients to, after all that restricts them, see `ClipGradientPlugin`.
            None: they are not clipped.
        schedule: of the learning rate over each experience, beginning anew with each: a name in
            SCHEDULES. None: constant.
        augment: crop and flip training images at random, see `with_augmentation`.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 0.1
    batch_size: int = 10
    epochs: int = 1
    eval_batch_size: int = 1000
    device: str = "cpu"
    memory: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    length_buckets: int | None = None
    validation: float = 0.0
    eval_every: int | None = None
    precision: str | None = None
    accumulate: int = 1
    clip: float | None = None
    schedule: str | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        rate = finite("learning_rate", self.learning_rate, minimum=0.0, above=True)
        object.__setattr__(self, "learning_rate", rate)
        for name in ("batch_size", "epochs", "eval_batch_size", "memory", "accumulate"):
            object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        for name in ("length_buckets", "eval_every"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        object.__setattr__(self, "device", device_name("device", self.device))
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("momentum", "weight_decay", "validation"):
            object.__setattr__(self, name, finite(name, getattr(self, name), minimum=0.0))
        if self.momentum >= 1.0 or (self.momentum and self.optimizer != "sgd"):
            raise ValueError(f"momentum must be below 1 and is SGD's only, got {self.momentum}")
        if self.validation >= 1.0:
            raise ValueError(f"validation must be a share >= 0 and below 1, got {self.validation}")
        self._check_how_steps_are_made()

    def _check_how_steps_are_made(self) -> None:
        if self.precision is not None:
            one_of("precision", self.precision, PRECISIONS)
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate={self.accumulate} needs a batch_size of at least {self.accumulate}, "
                f"got batch_size={self.batch_size}"
            )
        if self.clip is not None:
            object.__setattr__(self, "clip", finite("clip", self.clip, minimum=0.0, above=True))
        if self.schedule is not None:
            one_of("schedule", self.schedule, SCHEDULES)
        object.__setattr__(self, "augment", flag("augment", self.augment))

    def description(self) -> dict[str, Any]:
        """Return what decides a result; what came later, only where it is not the default."""
        described = {k: v for k, v in asdict(self).items() if k != "eval_batch_size"}
        later = {f.name: f.default for f in fields(self) if f.name in _CAME_LATER}
        return {k: v for k, v in described.items() if k not in later or v != later[k]}


@dataclass(frozen=True)
class NamedStream:
    """A stream by its name and arguments; called with a seed, it makes the scenario."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_text("name", self.name, what="the name of a stream")
        given = self.arguments
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"arguments must be {{name: value}}, got {given!r}")

    def __call__(self, seed: int) -> Any:
        """Return the scenario of this seed."""
        return make_stream(self.name, seed=seed, **self.arguments)

    def check(self) -> int:
        """Return the number of experiences.

        Raises:
            ValueError: what is wrong with the stream, as far as its data need not be read for it.
        """
        return check_stream(self.name, **self.arguments)

    def description(self) -> dict[str, Any]:
        """Return what decides the samples, as JSON values; of a file, its contents."""
        arguments = {k: describe(v) for k, v in self.arguments.items() if k not in _PLACES}
        described = {"type": "NamedStream", "name": self.name, "arguments": arguments}
        which = {k: self.arguments.get(k) for k in ("data_root", "domains", "tasks")}
        digests = [file_digest(path) for path in stream_files(self.name, **which)]
        if folder := stream_folder(self.name, data_root=which["data_root"]):
            from avalanche_mgem.streams.vision.image_folders import folder_digest

            digests.append(folder_digest(folder))
            described["name"] = self._name_without_place(folder)
        if not digests:
            return described
        return {**described, "sha256": digests[0] if len(digests) == 1 else digests}

    def _name_without_place(self, folder: Path) -> str:
        kind, source = parse_stream_name(self.name)
        start = len(kind) + 1
        behind = self.name[start + len(source) :]  # a corruption
        return f"{self.name[:start]}{folder.resolve().name}/{behind}"


@dataclass(frozen=True)
class RunSpecification:
    """One run: a method on a stream with a seed.

    Args:
        method: what trains.
        stream: called with the seed, returns an Avalanche scenario.
        seed: of the stream, the model and the training.
        model: called with a sample's shape and the number of classes, returns a model.
        training: how it trains.
    """

    method: Method
    stream: Callable[[int], Any]
    seed: int
    model: ModelFactory = field(default_factory=MLPFactory)
    training: Training = field(default_factory=Training)

    def scenario(self) -> Any:
        """Return the scenario of the run's seed, with all that training needs.

        With a share for validation, it has a validation_stream of what is not trained on.

        Raises:
            ValueError: the stream makes something else, see `complete_scenario`; an experience has
                nothing to hold out, see `with_validation`; augment, and samples that are no images,
                see `with_augmentation`.
        """
        from avalanche_mgem.streams.benchmarks import complete_scenario
        from avalanche_mgem.streams.validation import with_validation
        from avalanche_mgem.streams.vision.augmentation import with_augmentation

        scenario = complete_scenario(self.stream(self.seed))
        if share := self.training.validation:
            scenario = with_validation(scenario, share, seed=self.seed)
        return with_augmentation(scenario) if self.training.augment else scenario

    @property
    def stream_name(self) -> str:
        """Name of the stream, for people."""
        return str(getattr(self.stream, "name", getattr(self.stream, "__name__", "stream")))

    def description(self, n_experiences: int | None = None) -> dict[str, Any]:
        """Return the run as JSON values: what decides its result, and nothing else.

        With the length of the stream, memory sizes are numbers.
        """
        settings = self.method.settings
        if n_experiences is not None:
            settings = self.method.resolved_settings(self.training.memory, n_experiences)
        described = {
            "strategy": _described(self.method.strategy),
            "settings": {k: describe(v) for k, v in sorted(settings.items())},
            "stream": _described(self.stream),
            "seed": self.seed,
            "model": _described(self.model),
            "training": self.training.description(),
        }
        # Only where it says something, so that the keys of other methods stay what they were.
        return {**described, "whole_stream": True} if self.method.whole_stream else described

    @property
    def key(self) -> str:
        """Name of the run's files: method, seed, and a hash of its description and the versions."""
        identity = json.dumps([self.description(), self.versions], sort_keys=True)
        short = hashlib.sha256(identity.encode()).hexdigest()[:10]
        return f"{file_name(self.method.name)}-seed{self.seed}-{short}"

    @property
    def versions(self) -> dict[str, str]:
        """The versions of Python and of the packages that decide the numbers."""
        parts = (self.method.strategy, self.stream, self.model)
        further = {name for part in parts if isinstance(part, _DESCRIBED) for name in _needs(part)}
        return versions(*sorted(further))


_DESCRIBED = (
    NamedStream,
    TextStream,
    FixedStream,
    TextModelFactory,
    Combination,
)  # tell themselves


def versions(*further: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers, and of others."""
    told = {name: _version(name) for name in (*_PACKAGES, *further)}
    return {"python": platform.python_version(), **told}


@cache  # reading it takes milliseconds, for each of many runs
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package in _PACKAGES:
            raise
        return "not installed"  # whoever needs it says how to get it


def _needs(part: Any) -> tuple[str, ...]:
    needed: tuple[str, ...] = getattr(part, "packages", ())
    return needed


def _described(part: Any) -> Any:
    return part.description() if isinstance(part, _DESCRIBED) else describe(part)
