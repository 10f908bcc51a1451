"""The methods that can be compared: ours and Avalanche's, with their settings in one place."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from avalanche.training.supervised import AGEM, EWC, GEM, Naive, Replay

from avalanche_mgem.arguments import suggestion
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
    """

    name: str
    strategy: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    def variant(self, name: str | None = None, **settings: Any) -> Method:
        """Return the method with some settings changed, under another name if one is given.

        Raises:
            ValueError: a setting that the strategy does not take, with the nearest names.
        """
        known = self.setting_names
        for setting in settings:
            if known and setting not in known:
                raise ValueError(
                    f"{self.name}.{setting}: no such setting; {suggestion(setting, sorted(known))}"
                )
        changed = {**self.settings, **settings}
        return Method(name or self.name, self.strategy, changed, self.description)

    @property
    def setting_names(self) -> set[str]:
        """The settings that the strategy takes by name."""
        return option_names(self.strategy) - COMMON

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


_ALL = (
    Method("naive", Naive, {}, "train on, remember nothing"),
    Method("replay", Replay, {"mem_size": Memory.TOTAL}, "half of each minibatch from the memory"),
    Method("ewc", EWC, {"ewc_lambda": 10.0}, "a penalty on moving what mattered (Fisher diagonal)"),
    Method(
        "agem",
        AGEM,
        {"patterns_per_exp": Memory.PER_EXPERIENCE, "sample_size": Memory.PER_EXPERIENCE},
        "one constraint: the memory's mean gradient",
    ),
    Method(
        "gem",
        GEM,
        {"patterns_per_exp": Memory.PER_EXPERIENCE, "memory_strength": 0.5},
        "one constraint a past task (Avalanche's GEMPlugin)",
    ),
    _mgem("mgem-p", "GEM in each of 8 parameter blocks", parameter_groups=8),
    _mgem("mgem-d", "GEM with 8 constraints a past task", memory_groups=8),
    _mgem("mgem-pd", "both: 8 blocks, 4 constraints a task", parameter_groups=8, memory_groups=4),
    _mgem("mgem-p-approx", "mgem-p, diagonal Gram", parameter_groups=8, solver="approximate"),
    _mgem("mgem-d-approx", "mgem-d, diagonal Gram", memory_groups=8, solver="approximate"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def select_methods(
    methods: Iterable[str | Method], changes: Mapping[str, Mapping[str, Any]]
) -> list[Method]:
    """Look the methods up by name and change their settings.

    Args:
        methods: names in METHODS, or methods of the user's own.
        changes: {method name: {setting: value}}.

    Raises:
        ValueError: an unknown method or setting, with the nearest names; the same name twice;
            changes to a method that is not compared.
    """
    chosen: dict[str, Method] = {}
    for entry in methods:
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
        raise ValueError(f"methods: unknown method {name!r}; {suggestion(name, METHODS)}")
    return METHODS[name]
