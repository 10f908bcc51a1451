"""Everything a run is started with, and the key that tells one configuration from another."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from avalanche_mgem.arguments import finite, positive_int
from avalanche_mgem.experiment.models import MLPFactory, ModelFactory
from avalanche_mgem.experiment.registry import Method
from avalanche_mgem.streams import make_stream

_PACKAGES = ("avalanche-mgem", "avalanche-lib", "torch", "torchvision", "quadprog", "numpy")


@dataclass(frozen=True)
class Training:
    """How every method trains.

    Args:
        learning_rate: of plain SGD.
        batch_size: training minibatch.
        epochs: passes over each experience.
        eval_batch_size: minibatch of the evaluation; it changes no result.
        device: a torch device.
        memory: patterns kept of each experience by the methods that have a memory.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 0.1
    batch_size: int = 10
    epochs: int = 1
    eval_batch_size: int = 1000
    device: str = "cpu"
    memory: int = 64

    def __post_init__(self) -> None:
        finite("learning_rate", self.learning_rate, minimum=0.0, above=True)
        for name in ("batch_size", "epochs", "eval_batch_size", "memory"):
            positive_int(name, getattr(self, name))


@dataclass(frozen=True)
class NamedStream:
    """A stream by its name and arguments; called with a seed, it makes the scenario."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, seed: int) -> Any:
        """Return the scenario of this seed."""
        return make_stream(self.name, seed=seed, **self.arguments)


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
        # Where the data lies and how much is evaluated at a time decide nothing.
        training = {k: v for k, v in asdict(self.training).items() if k != "eval_batch_size"}
        stream = _describe(self.stream)
        if isinstance(stream, dict):
            arguments = stream.get("arguments", {})
            stream["arguments"] = {k: v for k, v in arguments.items() if k not in _PLACES}
        return {
            "strategy": _describe(self.method.strategy),
            "settings": {k: _describe(v) for k, v in sorted(settings.items())},
            "stream": stream,
            "seed": self.seed,
            "model": _describe(self.model),
            "training": training,
        }

    @property
    def key(self) -> str:
        """Name of the run's files: method, seed, and a hash of its description and the versions."""
        identity = json.dumps([self.description(), versions()], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        return f"{self.method.name}-seed{self.seed}-{digest}"


_PLACES = ("data_root", "download")


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the numbers, and Python's."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def _describe(value: Any) -> Any:
    """Turn a setting into JSON values that differ when the setting does.

    A function of the user's own is told by its name and its source text; what it calls is not seen.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Mapping):
        return {str(k): _describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        described = {f.name: _describe(getattr(value, f.name)) for f in fields(value)}
        return {"type": type(value).__qualname__, **described}
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}{_source_mark(value)}"
    return repr(value)


def _source_mark(value: Any) -> str:
    if value.__module__.startswith(("avalanche.", "avalanche_mgem.")):
        return ""  # its version says enough
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return ""
    return "#" + hashlib.sha256(source.encode()).hexdigest()[:10]
