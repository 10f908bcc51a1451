"""What a method is: a strategy, its settings, and how they are changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from avalanche_mgem.arguments import flag, instance, suggestion
from avalanche_mgem.lazy import Lazy, option_names, resolved
from avalanche_mgem.methods.space import Choices, Range, Space

_TEMPLATES = "avalanche.training.templates."

Check = Callable[[Mapping[str, Any], int], None]

# What the comparison decides for every method alike.
COMMON = frozenset(
    {
        "model",
        "optimizer",
        "criterion",
        "train_mb_size",
        "train_epochs",
        "eval_mb_size",
        "device",
        "evaluator",
        "plugins",
        "eval_every",
        "peval_mode",
        "self",
    }
)


@runtime_checkable
class NamesSettings(Protocol):
    """A strategy that says itself what its settings are called."""

    @property
    def setting_names(self) -> set[str]:
        """The names by which settings are given."""

    def setting_name(self, name: str) -> str:
        """Return the name in `setting_names` that `name` stands for, if it stands for one.

        Raises:
            ValueError: a name that stands for several.
        """


class Memory(Enum):
    """A setting that follows from the comparison's memory budget, the same for every method."""

    PER_EXPERIENCE = "patterns per experience"
    TOTAL = "patterns per experience times experiences"

    def resolve(self, per_experience: int, n_experiences: int) -> int:
        """Return the number of patterns that this stands for."""
        return per_experience * (n_experiences if self is Memory.TOTAL else 1)

    def __str__(self) -> str:
        """What it follows from, in short."""
        return "memory x experiences" if self is Memory.TOTAL else "memory"


@dataclass(frozen=True)
class Method:
    """A way to train: an Avalanche strategy and its settings.

    Args:
        name: under which its results are shown.
        strategy: called with Avalanche's usual keyword arguments (model, optimizer, criterion,
            train_mb_size, train_epochs, eval_mb_size, device, evaluator) and the settings; a
            strategy class, or a function that returns a strategy. Where the comparison has plugins
            of its own (length buckets), it takes `plugins` too.
        settings: further keyword arguments; a `Memory` stands for a number of patterns.
        description: one line.
        check: called with the settings (memories as numbers) and the number of experiences before
            anything is trained; raises a ValueError that begins with the setting's name.
        whole_stream: trained once, with `strategy.train(train_stream)`, instead of on each
            experience in turn; then R has its last row only.
        space: what a sweep tries unless it is told otherwise, {setting: `Range` or `Choices`}.

    Raises:
        ValueError: no name, a strategy that cannot be called, or another value of another kind.
    """

    name: str
    strategy: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    check: Check | None = None
    whole_stream: bool = False
    space: Space = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name of a method must be a text, got {self.name!r}")
        if not callable(self.strategy):
            raise ValueError(
                f"strategy of {self.name!r} must be a strategy class or a function that returns a "
                f"strategy, got {self.strategy!r}"
            )
        given = self.settings
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"settings of {self.name!r} must be {{name: value}}, got {given!r}")
        instance("description", self.description, str, what="a text")
        if not (self.check is None or callable(self.check)):
            raise ValueError(
                f"check of {self.name!r} must be a function or None, got {self.check!r}"
            )
        object.__setattr__(self, "whole_stream", flag("whole_stream", self.whole_stream))
        whole = isinstance(self.space, Mapping) and all(
            isinstance(k, str) and isinstance(v, Range | Choices) for k, v in self.space.items()
        )
        if not whole:
            raise ValueError(
                f"space of {self.name!r} must be {{setting: Range or Choices}}, got {self.space!r}"
            )

    def variant(self, name: str | None = None, /, **settings: Any) -> Method:
        """Return the method with some settings changed, under another name if one is given.

        What is changed is no more in its space.

        Raises:
            ValueError: a setting that the strategy does not take, with the nearest names.
        """
        changes = {self.known_setting(setting): value for setting, value in settings.items()}
        space = {k: v for k, v in self.space.items() if k not in changes}
        settings = {**self.settings, **changes}
        return replace(self, name=name or self.name, settings=settings, space=space)

    @property
    def setting_names(self) -> set[str]:
        """The settings that the strategy takes by name."""
        if isinstance(self.strategy, NamesSettings):
            return self.strategy.setting_names
        return option_names(self.strategy) - COMMON

    def known_setting(self, setting: str) -> str:
        """Return the name that the strategy has for a setting.

        Raises:
            ValueError: a setting that the strategy does not take, with the nearest names.
        """
        if setting in COMMON:
            raise ValueError(
                f"{self.name}.{setting}: the comparison decides this for all methods alike"
            )
        if isinstance(self.strategy, NamesSettings):
            try:
                setting = self.strategy.setting_name(setting)
            except ValueError as error:
                raise ValueError(f"{self.name}.{error}") from error
        known = self.setting_names
        if setting not in known and not self._takes_any:
            known_names = suggestion(setting, sorted(known)) if known else "it has none"
            raise ValueError(f"{self.name}.{setting}: no such setting; {known_names}")
        return setting

    @property
    def _takes_any(self) -> bool:
        if isinstance(self.strategy, NamesSettings):
            return False
        if isinstance(self.strategy, Lazy) and self.strategy.options is not None:
            return False
        strategy = resolved(self.strategy)
        # Avalanche's strategies hand **kwargs to a template that knows the common names only.
        kinds = getattr(strategy, "__mro__", ())
        if any(kind.__module__.startswith(_TEMPLATES) for kind in kinds):
            return False
        parameters = inspect.signature(strategy).parameters.values()
        return any(p.kind is p.VAR_KEYWORD for p in parameters)

    def resolved_settings(self, per_experience: int, n_experiences: int) -> dict[str, Any]:
        """Return the settings with every `Memory` replaced by its number."""
        return {
            name: value.resolve(per_experience, n_experiences)
            if isinstance(value, Memory)
            else value
            for name, value in self.settings.items()
        }
