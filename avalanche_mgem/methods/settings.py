"""What settings may be, as far as that can be told before a strategy is made.

Avalanche's strategies find out in the middle of the training, or never. Ours check their arguments
themselves, in the same words; here it is said before anything is imported that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from numbers import Integral, Real
from typing import Any

from avalanche_mgem.arguments import bounded_int, finite, flag, one_of, positive_int

Rule = Callable[[str, Any], object]
"""Called with a setting's name and value; raises the ValueError of the strategy that has it."""


@dataclass(frozen=True)
class Choice:
    """One of these words; or a callable, where that is one."""

    words: tuple[str, ...]
    or_callable: bool = False
    or_mapping: bool = False  # which is looked at with the model

    def __call__(self, name: str, value: Any) -> object:
        """Raise ValueError for anything else."""
        if self.or_callable and callable(value) and not isinstance(value, type):
            return value
        if self.or_mapping and isinstance(value, Mapping):
            return value
        return one_of(name, value, self.words)


def _choice(*words: str) -> Choice:
    return Choice(words)


def _whole(minimum: int = 1) -> Rule:
    return lambda name, value: positive_int(name, value, minimum=minimum)


def _number(minimum: float = 0.0, *, above: bool = False) -> Rule:
    return lambda name, value: finite(name, value, minimum=minimum, above=above)


def _optional(rule: Rule) -> Rule:
    return lambda name, value: None if value is None else rule(name, value)


def _mask_fraction(name: str, value: Any) -> None:
    if finite(name, value, minimum=0.0) >= 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def _dropout(name: str, value: Any) -> None:
    share = finite(name, value, minimum=0.0)
    if share >= 1:
        raise ValueError(f"{name} must be in [0, 1), got {share!r}")


def _low_magnitude(name: str, value: Any) -> None:
    if finite(name, value, minimum=0.0) > 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def _magnitude(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise ValueError(f"{name} must be None or a callable, got {value!r}")


def _memory_strength(name: str, value: Any) -> None:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"{name} must be a finite number >= 0 or 'auto', got {value!r}")
    elif isinstance(value, Real | type) or not (callable(value) or is_dataclass(value)):
        finite(name, value, minimum=0.0)


def _parameter_groups(name: str, value: Any) -> None:
    # Mappings and callables are looked at with the model.
    if isinstance(value, str):
        one_of(name, value, ("layer", "tensor"))
    elif isinstance(value, Integral):
        positive_int(name, value)


def _ridge(name: str, value: Any) -> None:
    if not isinstance(value, str):
        finite(name, value, minimum=0.0, above=True)
    elif value not in ("auto", "relative"):
        raise ValueError(f"{name} must be 'auto', 'relative' or a number > 0, got {value!r}")


_SHARED: dict[str, Rule] = {
    "seed": _optional(_whole(0)),
    "on_nonfinite": _choice("raise", "skip"),
}
MGEM_RULES: dict[str, Rule] = {
    **_SHARED,
    "patterns_per_experience": _whole(),
    "memory_strength": _memory_strength,
    "parameter_groups": _parameter_groups,
    "memory_groups": _whole(),
    "solver": Choice(("exact", "approximate"), or_callable=True),
    "restrict": _choice("gradient", "update"),
    "memory_split": _choice("random", "class"),
    "memory_selection": _choice("random", "class-balanced", "ring"),
    "memory_strength_per": _choice("task", "row"),
    "ridge": _ridge,
    "unassigned_parameters": _choice("error", "free", "module"),
    "unused_parameters": _choice("exclude", "include"),
    "memory_passes": _choice("auto", "loop", "grouped"),
    "memory_transform": _choice("eval", "train"),
    "memory_batch_size": _optional(_whole()),
    "refresh_every": _whole(),
    "max_row_bytes": _optional(_whole()),
    "memory_batchnorm": _choice("update", "restore", "evaluate"),
    "memory_precision": _choice("float32", "bf16"),
    "memory_format": _choice("preserve", "channels_last"),
    "generalization_every": _optional(_whole()),
}
MIGU_RULES: dict[str, Rule] = {
    **_SHARED,
    "mask_fraction": _mask_fraction,
    "score": _choice("output", "gradient", "weight", "random"),
    "freeze": _choice("gradient", "update"),
    "ungated": _choice("train", "freeze"),
    "normalize": _choice("none", "token"),
    "fused": Choice(("layer", "parts"), or_mapping=True),
    "ignore_padding": flag,
    "skip_tasks": _whole(0),
    "skip_steps": _whole(0),
}
HYBRID_RULES: dict[str, Rule] = {
    **_SHARED,
    "mode": _choice("adaptive", "frozen", "initialized", "decay"),
    "magnitude_decay": _optional(_number()),
    "low_magnitude": _low_magnitude,
    "magnitude": _magnitude,
    "threshold": finite,
    "low": _whole(0),
    "high": _optional(_whole()),
    "schedule": _choice("hard", "graded"),
    "granularity": _choice("model", "module"),
    "metric": Choice(("cosine", "sign"), or_callable=True),
    "reference": _choice("end", "start"),
    "probe_head": _choice("own", "ridge", "auto"),
    "probe_batches": _whole(),
    "head_epochs": _whole(0),
    "decide_every": _optional(_whole()),
}
LORA_RULES: dict[str, Rule] = {
    "rank": bounded_int,
    "alpha": _number(above=True),
    "dropout": _dropout,
    "train_heads": flag,
    "seed": _optional(_whole(0)),
    "orthogonality": _number(),
    "penalty": _choice("absolute", "squared"),
}
_BASELINE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("mem_size", "patterns_per_exp", "sample_size"), _whole()),
    **dict.fromkeys(("ewc_lambda", "decay_factor", "memory_strength"), _number()),
    **dict.fromkeys(("temperature", "eps"), _number(above=True)),
    "mode": _choice("separate", "online"),
}


def check_mgem(settings: Mapping[str, Any], _n_experiences: int) -> None:
    """Check settings of MGEM; raises ValueError as `check_baseline` does."""
    _check(MGEM_RULES, settings)
    groups, patterns = settings.get("memory_groups", 1), settings.get("patterns_per_experience")
    if patterns is not None and groups > patterns:
        raise ValueError(
            f"memory_groups={groups} needs at least {groups} patterns per experience, "
            f"got patterns_per_experience={patterns}"
        )


def check_migu(settings: Mapping[str, Any], _n_experiences: int) -> None:
    """Check settings of MIGU; raises ValueError as `check_baseline` does."""
    _check(MIGU_RULES, settings)


def check_hybrid(settings: Mapping[str, Any], _n_experiences: int) -> None:
    """Check settings of HybridMagnitude; raises ValueError as `check_baseline` does."""
    _check(HYBRID_RULES, settings)


def check_lora(settings: Mapping[str, Any], _n_experiences: int) -> None:
    """Check settings of the LoRA plugins; raises ValueError as `check_baseline` does."""
    _check(LORA_RULES, settings)


def check_baseline(settings: Mapping[str, Any], n_experiences: int) -> None:
    """Check settings of Avalanche's strategies.

    Args:
        settings: of a strategy, memories as numbers.
        n_experiences: length of the stream.

    Raises:
        ValueError: a setting out of range or of a wrong type; the message begins with its name.
    """
    _check(_BASELINE_RULES, settings)
    # si repeats the last value of a list that is too short; lwf fails in the middle of the stream.
    _check_weights("si_lambda", settings, at_least=1)
    _check_weights("alpha", settings, at_least=n_experiences)
    _check_sample_size(settings, n_experiences)


def _check(rules: Mapping[str, Rule], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name in rules:
            rules[name](name, value)


def _check_weights(name: str, settings: Mapping[str, Any], at_least: int) -> None:
    """Check a weight of the penalty: a number, or a list or tuple of one for each experience."""
    value = settings.get(name, 0.0)
    if not isinstance(value, list | tuple):
        finite(name, value, minimum=0.0)
        return
    if len(value) < at_least:
        raise ValueError(
            f"{name} must have at least {at_least} values (or be one number), got {value!r}"
        )
    for one in value:
        finite(name, one, minimum=0.0)


def _check_sample_size(settings: Mapping[str, Any], n_experiences: int) -> None:
    if settings.get("sample_size", n_experiences) < n_experiences:
        raise ValueError(
            f"sample_size={settings['sample_size']} must be at least the number of experiences, "
            f"{n_experiences}: agem draws sample_size // experiences patterns from each memory"
        )
