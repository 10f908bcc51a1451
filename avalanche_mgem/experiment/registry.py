"""The methods that can be compared: ours and Avalanche's, with their settings in one place."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from avalanche.training.supervised import AGEM, EWC, GEM, Naive, Replay
from avalanche.training.templates.base import BaseTemplate

from avalanche_mgem.arguments import finite, one_of, positive_int, suggestion
from avalanche_mgem.strategies import MGEM, option_names

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


class Memory(Enum):
    """A setting that follows from the comparison's memory budget, the same for every method."""

    PER_EXPERIENCE = "patterns per experience"
    TOTAL = "patterns per experience times experiences"

    def resolve(self, per_experience: int, n_experiences: int) -> int:
        """Return the number of patterns that this stands for."""
        return per_experience * (n_experiences if self is Memory.TOTAL else 1)


@dataclass(frozen=True)
class Method:
    """A way to train: an Avalanche strategy and its settings.

    Args:
        name: under which its results are shown.
        strategy: called with Avalanche's usual keyword arguments (model, optimizer, criterion,
            train_mb_size, train_epochs, eval_mb_size, device, evaluator) and the settings; a
            strategy class, or a function that returns a strategy.
        settings: further keyword arguments; a `Memory` stands for a number of patterns.
        description: one line.
        check: called with the settings (memories as numbers) and the number of experiences before
            anything is trained; raises a ValueError that begins with the setting's name.

    Raises:
        ValueError: no name, or a strategy that cannot be called.
    """

    name: str
    strategy: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    check: Callable[[Mapping[str, Any], int], None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name of a method must be a text, got {self.name!r}")
        if not callable(self.strategy):
            raise ValueError(
                f"strategy of {self.name!r} must be a strategy class or a function that returns a "
                f"strategy, got {self.strategy!r}"
            )

    def variant(self, name: str | None = None, **settings: Any) -> Method:
        """Return the method with some settings changed, under another name if one is given.

        Raises:
            ValueError: a setting that the strategy does not take, with the nearest names.
        """
        for setting in settings:
            self._require_known(setting)
        return replace(self, name=name or self.name, settings={**self.settings, **settings})

    @property
    def setting_names(self) -> set[str]:
        """The settings that the strategy takes by name."""
        return option_names(self.strategy) - COMMON

    def _require_known(self, setting: str) -> None:
        known = self.setting_names
        if setting in COMMON:
            raise ValueError(
                f"{self.name}.{setting}: the comparison decides this for all methods alike"
            )
        if setting not in known and not self._takes_any:
            known_names = suggestion(setting, sorted(known)) if known else "it has none"
            raise ValueError(f"{self.name}.{setting}: no such setting; {known_names}")

    @property
    def _takes_any(self) -> bool:
        # Avalanche's strategies hand **kwargs to a template that knows the common names only.
        if isinstance(self.strategy, type) and issubclass(self.strategy, BaseTemplate):
            return False
        parameters = inspect.signature(self.strategy).parameters.values()
        return any(p.kind is p.VAR_KEYWORD for p in parameters)

    def resolved_settings(self, per_experience: int, n_experiences: int) -> dict[str, Any]:
        """Return the settings with every `Memory` replaced by its number."""
        return {
            name: value.resolve(per_experience, n_experiences)
            if isinstance(value, Memory)
            else value
            for name, value in self.settings.items()
        }


def _mgem(name: str, description: str, **settings: Any) -> Method:
    memory = {"patterns_per_experience": Memory.PER_EXPERIENCE, "memory_strength": 0.5}
    return Method(name, MGEM, {**memory, **settings}, description)


def _check_baseline(settings: Mapping[str, Any], n_experiences: int) -> None:
    """Check what Avalanche's strategies find out in the middle of the training, or never."""
    for name in ("mem_size", "patterns_per_exp", "sample_size"):
        if name in settings:
            positive_int(name, settings[name])
    for name in ("ewc_lambda", "decay_factor", "memory_strength"):
        if name in settings:
            finite(name, settings[name], minimum=0.0)
    if "mode" in settings:
        one_of("mode", settings["mode"], ("separate", "online"))
    if settings.get("sample_size", n_experiences) < n_experiences:
        raise ValueError(
            f"sample_size={settings['sample_size']} must be at least the number of experiences, "
            f"{n_experiences}: agem draws sample_size // experiences patterns from each memory"
        )


_ALL = (
    Method("naive", Naive, {}, "train on, remember nothing"),
    Method(
        "replay",
        Replay,
        {"mem_size": Memory.TOTAL},
        "half of each minibatch from the memory",
        _check_baseline,
    ),
    # The best ACC of 0.1, 1, 3, 10, 30, 100, 300 and 1000 on the default stream, seeds 100 and 101.
    Method(
        "ewc",
        EWC,
        {"ewc_lambda": 10.0},
        "a penalty on moving what mattered (Fisher diagonal)",
        _check_baseline,
    ),
    Method(
        "agem",
        AGEM,
        {"patterns_per_exp": Memory.PER_EXPERIENCE, "sample_size": Memory.PER_EXPERIENCE},
        "one constraint: the memory's mean gradient",
        _check_baseline,
    ),
    Method(
        "gem",
        GEM,
        {"patterns_per_exp": Memory.PER_EXPERIENCE, "memory_strength": 0.5},
        "one constraint a past task (Avalanche's GEMPlugin)",
        _check_baseline,
    ),
    _mgem("mgem-p", "GEM in each of 8 parameter blocks", parameter_groups=8),
    _mgem("mgem-d", "GEM with 8 constraints a past task", memory_groups=8),
    _mgem("mgem-pd", "both: 8 blocks, 4 constraints a task", parameter_groups=8, memory_groups=4),
    _mgem("mgem-p-approx", "mgem-p, diagonal Gram", parameter_groups=8, solver="approximate"),
    _mgem("mgem-d-approx", "mgem-d, diagonal Gram", memory_groups=8, solver="approximate"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def select_methods(
    methods: str | Method | Iterable[str | Method], changes: Mapping[str, Mapping[str, Any]]
) -> list[Method]:
    """Look the methods up by name and change their settings.

    Args:
        methods: names in METHODS, or methods of the user's own; one or several.
        changes: {method name: {setting: value}}.

    Raises:
        ValueError: an unknown method or setting, with the nearest names; the same name twice;
            changes to a method that is not compared.
    """
    chosen: dict[str, Method] = {}
    for entry in [methods] if isinstance(methods, str | Method) else methods:
        method = entry if isinstance(entry, Method) else _look_up(entry)
        if method.name in chosen:
            raise ValueError(f"methods: {method.name!r} is named twice")
        chosen[method.name] = method
    if not chosen:
        raise ValueError("methods must name at least one method")
    for name, settings in changes.items():
        if name not in chosen:
            raise ValueError(
                f"settings: {name!r} is not among the methods; {suggestion(name, chosen)}"
            )
        chosen[name] = chosen[name].variant(**settings)
    return list(chosen.values())


def parse_settings(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read assignments such as "mgem-d.memory_groups=8" into {method: {setting: value}}.

    Values are Python literals; what is none is text.

    Raises:
        ValueError: an assignment of another form.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        method, dot, setting = target.strip().partition(".")
        if not (equals and dot and method and setting):
            raise ValueError(
                f"set: {assignment!r} is not of the form METHOD.SETTING=VALUE, "
                "such as mgem-d.memory_groups=8"
            )
        parsed.setdefault(method, {})[setting.strip()] = _literal(text.strip())
    return parsed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _look_up(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"methods: unknown method {name!r}; {suggestion(str(name), METHODS)}")
    return METHODS[name]
