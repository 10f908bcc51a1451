"""The methods that can be compared: ours and Avalanche's, with their settings in one place."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from avalanche.training.supervised import (
    AGEM,
    EWC,
    GEM,
    Cumulative,
    GDumb,
    JointTraining,
    LwF,
    Naive,
    Replay,
)
from avalanche.training.templates.base import BaseTemplate
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from avalanche_mgem.arguments import suggestion
from avalanche_mgem.experiment.baselines import SynapticIntelligence, check_baseline
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
            strategy class, or a function that returns a strategy.
        settings: further keyword arguments; a `Memory` stands for a number of patterns.
        description: one line.
        check: called with the settings (memories as numbers) and the number of experiences before
            anything is trained; raises a ValueError that begins with the setting's name.
        whole_stream: trained once, with `strategy.train(train_stream)`, instead of on each
            experience in turn; then R has its last row only.

    Raises:
        ValueError: no name, or a strategy that cannot be called.
    """

    name: str
    strategy: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    check: Callable[[Mapping[str, Any], int], None] | None = None
    whole_stream: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name of a method must be a text, got {self.name!r}")
        if not callable(self.strategy):
            raise ValueError(
                f"strategy of {self.name!r} must be a strategy class or a function that returns a "
                f"strategy, got {self.strategy!r}"
            )

    def variant(self, name: str | None = None, /, **settings: Any) -> Method:
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


def _baseline(name: str, strategy: Any, description: str, **settings: Any) -> Method:
    return Method(name, strategy, settings, description, check_baseline)


# The weights of the penalties (ewc, si, lwf) have the best ACC on the default stream over the
# seeds 100 and 101: ewc of 0.1 to 1000, si of 0.1 to 10,000 and lwf of 0.1 to 100, in steps of
# about 3. The best si is within a few thousandths of naive: a stronger one learns too little.
_ALL = (
    _baseline("naive", Naive, "train on, remember nothing"),
    _baseline("replay", Replay, "half of each minibatch from the memory", mem_size=Memory.TOTAL),
    _baseline("ewc", EWC, "a penalty on moving what mattered (Fisher diagonal)", ewc_lambda=10.0),
    _baseline(
        "si",
        SynapticIntelligence,
        "a penalty on moving what lowered the loss (path integral)",
        si_lambda=1.0,
    ),
    _baseline(
        "lwf",
        LwF,
        "answer on new samples as the model before did (distillation)",
        alpha=10.0,
        temperature=2.0,
    ),
    _baseline(
        "agem",
        AGEM,
        "one constraint: the memory's mean gradient",
        patterns_per_exp=Memory.PER_EXPERIENCE,
        sample_size=Memory.PER_EXPERIENCE,
    ),
    _baseline(
        "gem",
        GEM,
        "one constraint a past task (Avalanche's GEMPlugin)",
        patterns_per_exp=Memory.PER_EXPERIENCE,
        memory_strength=0.5,
    ),
    _baseline(
        "gdumb",
        GDumb,
        "from scratch on the balanced memory each time; wants more epochs than one",
        mem_size=Memory.TOTAL,
    ),
    _baseline("cumulative", Cumulative, "train on all experiences so far: no limit on memory"),
    Method(
        "joint",
        JointTraining,
        description="once on the whole stream, shuffled: no order to forget in (last row of R)",
        whole_stream=True,
    ),
    _mgem("mgem-p", "GEM in each of 8 parameter blocks", parameter_groups=8),
    _mgem("mgem-d", "GEM with 8 constraints a past task", memory_groups=8),
    _mgem("mgem-pd", "both: 8 blocks, 4 constraints a task", parameter_groups=8, memory_groups=4),
    _mgem("mgem-p-approx", "mgem-p, diagonal Gram", parameter_groups=8, solver="approximate"),
    _mgem("mgem-d-approx", "mgem-d, diagonal Gram", memory_groups=8, solver="approximate"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

# What is compared when no method is named: those that share the memory budget, and two without.
DEFAULT_METHODS: tuple[str, ...] = (
    *("naive", "replay", "ewc", "agem", "gem"),
    *("mgem-p", "mgem-d", "mgem-pd", "mgem-p-approx", "mgem-d-approx"),
)


def methods_table(methods: Iterable[Method] = _ALL) -> Table:
    """Return a table of the methods: name, description, and a line for each setting.

    A setting that follows from the comparison's memory budget is shown as "memory" (patterns an
    experience) or "memory x experiences".
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    table.caption = Text(
        "memory: the patterns kept of each experience, the same for every method. "
        f"Without names, these are compared: {', '.join(DEFAULT_METHODS)}."
    )
    table.add_column("Method", no_wrap=True)
    table.add_column("What it does")
    table.add_column("Settings", no_wrap=True, overflow="fold")
    for method in methods:
        settings = "\n".join(f"{name}={value}" for name, value in method.settings.items())
        table.add_row(Text(method.name), Text(method.description), Text(settings or "-"))
    return table


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
