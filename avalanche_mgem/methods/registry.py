"""The methods that can be compared: ours and Avalanche's, with their settings in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from avalanche_mgem.arguments import suggestion
from avalanche_mgem.lazy import Lazy
from avalanche_mgem.methods import known
from avalanche_mgem.methods.combination import JOINT, Combination, Part, combined
from avalanche_mgem.methods.method import Memory, Method
from avalanche_mgem.methods.registration import MethodRegistry
from avalanche_mgem.methods.settings import (
    check_baseline,
    check_hybrid,
    check_lora,
    check_mgem,
    check_migu,
)
from avalanche_mgem.methods.space import Range, Space

_STRENGTHS = Range(0.0, 1.0)
_GROUPS = Range(2, 32, log=True)
_WEIGHTS = Range(0.01, 10_000.0, log=True)  # of penalties, as benchmarks/choose.py tries them

# What a sweep tries of a setting, where a method has it and the value is not what it is about.
_MGEM_SPACE: Space = {
    "memory_strength": _STRENGTHS,
    "parameter_groups": _GROUPS,
    "memory_groups": Range(2, 16, log=True),  # 4 patterns each, of the default's 64
}
_HYBRID_SPACE: dict[str, Space] = {
    "adaptive": {"threshold": Range(-0.5, 0.5)},
    "frozen": {"low": Range(0, 2)},
    "decay": {"magnitude_decay": Range(0.0, 1.5)},
}
_LORA_SPACE: Space = {
    "rank": Range(2, 32, log=True),
    "alpha": Range(8.0, 64.0, log=True),
    "dropout": Range(0.0, 0.2),
    "orthogonality": Range(0.05, 5.0, log=True),
}


def _mgem(name: str, description: str, **settings: Any) -> Method:
    memory = {"patterns_per_experience": Memory.PER_EXPERIENCE, "memory_strength": 0.5}
    settings = {**memory, **settings}
    space = {k: v for k, v in _MGEM_SPACE.items() if v.holds(settings.get(k))}
    return Method(name, known.MGEM, settings, description, check_mgem, space=space)


def _migu(name: str, description: str, **settings: Any) -> Method:
    settings = {"mask_fraction": 0.7, "freeze": "gradient", **settings}
    space = {"mask_fraction": Range(0.1, 0.9)}
    return Method(name, known.MIGU, settings, description, check_migu, space=space)


def _hybrid(name: str, mode: str, description: str, **settings: Any) -> Method:
    settings, space = {"mode": mode, **settings}, _HYBRID_SPACE.get(mode, {})
    return Method(name, known.HYBRID, settings, description, check_hybrid, space=space)


def _lora(name: str, plugin: Lazy, description: str, **settings: Any) -> Method:
    strategy = Combination((Part(name, plugin, check_lora, ("transformers", "peft")),))
    settings = {"rank": 8, "alpha": 32, "dropout": 0.05, **settings}
    space = {k: v for k, v in _LORA_SPACE.items() if k in settings}
    return Method(name, strategy, settings, description, strategy.check, space=space)


def _baseline(
    name: str, strategy: Lazy, description: str, space: Space | None = None, **settings: Any
) -> Method:
    return Method(name, strategy, settings, description, check_baseline, space=space or {})


_AUTO = {"memory_strength": "auto"}

# The weights of the penalties (ewc, si, lwf) are chosen by benchmarks/choose.py: of 0.01 to 10,000
# in steps of 10, those with the best ACC on data of the default stream that was held out.
_ALL = (
    _baseline("naive", known.NAIVE, "train on, remember nothing"),
    _baseline(
        "replay", known.REPLAY, "half of each minibatch from the memory", mem_size=Memory.TOTAL
    ),
    _baseline(
        "ewc",
        known.EWC,
        "a penalty on moving what mattered (Fisher diagonal)",
        {"ewc_lambda": _WEIGHTS},
        ewc_lambda=10.0,
    ),
    _baseline(
        "si",
        known.SI,
        "a penalty on moving what lowered the loss (path integral)",
        {"si_lambda": _WEIGHTS},
        si_lambda=100.0,
    ),
    _baseline(
        "lwf",
        known.LWF,
        "answer on new samples as the model before did (distillation)",
        {"alpha": _WEIGHTS, "temperature": Range(1.0, 4.0)},
        alpha=10.0,
        temperature=2.0,
    ),
    _baseline(
        "agem",
        known.AGEM,
        "one constraint: the memory's mean gradient",
        patterns_per_exp=Memory.PER_EXPERIENCE,
        sample_size=Memory.PER_EXPERIENCE,
    ),
    _baseline(
        "gem",
        known.GEM,
        "one constraint a past task (Avalanche's GEMPlugin)",
        {"memory_strength": _STRENGTHS},
        patterns_per_exp=Memory.PER_EXPERIENCE,
        memory_strength=0.5,
    ),
    _baseline(
        "gdumb",
        known.GDUMB,
        "from scratch on the balanced memory each time; wants more epochs than one",
        mem_size=Memory.TOTAL,
    ),
    _baseline(
        "cumulative", known.CUMULATIVE, "train on all experiences so far: no limit on memory"
    ),
    Method(
        "joint",
        known.JOINT_TRAINING,
        description="once on the whole stream, shuffled: no order to forget in (last row of R)",
        whole_stream=True,
    ),
    _mgem("mgem-p", "GEM in each of 8 parameter blocks", parameter_groups=8),
    _mgem("mgem-d", "GEM with 8 constraints a past task", memory_groups=8),
    _mgem("mgem-pd", "both: 8 blocks, 4 constraints a task", parameter_groups=8, memory_groups=4),
    _mgem("mgem-p-approx", "mgem-p, diagonal Gram", parameter_groups=8, solver="approximate"),
    _mgem("mgem-d-approx", "mgem-d, diagonal Gram", memory_groups=8, solver="approximate"),
    _mgem("gem-auto", "GEM, memory strength by Polyak's step size", **_AUTO),
    _mgem("mgem-p-auto", "mgem-p, likewise", parameter_groups=8, **_AUTO),
    _mgem("mgem-d-auto", "mgem-d, likewise", memory_groups=8, **_AUTO),
    _mgem("mgem-pd-auto", "mgem-pd, likewise", parameter_groups=8, memory_groups=4, **_AUTO),
    _migu("migu", "of each layer only the 30% of the rows with the largest outputs learn"),
    _migu("migu-update", "migu, the other rows truly still", freeze="update"),
    _migu("migu-random", "migu with rows drawn at random, to compare with", score="random"),
    _migu(
        "migu-random-update",
        "the same, the other rows truly still",
        score="random",
        freeze="update",
    ),
    _migu("migu-gradient", "migu with the rows of the largest gradients", score="gradient"),
    _migu(
        "migu-gradient-update",
        "the same, the other rows truly still",
        score="gradient",
        freeze="update",
    ),
    _hybrid("initialized", "initialized", "all modules go on training (naive, by the plugin)"),
    _hybrid("frozen", "frozen", "after the first task the last module and the head train", low=1),
    _hybrid(
        "hybrid",
        "adaptive",
        "the last module trains if a task's gradient points where the last one's did, else all",
        low=1,
        threshold=0.0,
    ),
    _hybrid(
        "decay",
        "decay",
        "all modules train, all but the heads by steps that shrink with the tasks, t^-0.5",
    ),
    _hybrid("decay-1", "decay", "the same, t^-1", magnitude_decay=1.0),
    _lora("lora", known.LORA_PLUGIN, "one low-rank adapter for all tasks"),
    _lora("inclora", known.INCLORA_PLUGIN, "a new low-rank adapter a task"),
    _lora("olora", known.OLORA_PLUGIN, "inclora, adapters held orthogonal", orthogonality=0.5),
)

METHODS = MethodRegistry(_ALL)
"""The methods that are known by name; `METHODS.register` adds one."""

# What is compared when no method is named: those that share the memory budget, and some without.
DEFAULT_METHODS: tuple[str, ...] = (
    *("naive", "replay", "ewc", "agem", "gem"),
    *("mgem-p", "mgem-d", "mgem-d-approx", "mgem-d-auto"),
    "migu",
)
# The same for text: those of MIGU's paper, but for adapters beside others.
TEXT_METHODS: tuple[str, ...] = (
    *("naive", "replay", "migu", "migu-update"),
    *("lora", "lora+migu", "inclora", "olora"),
)


def find_method(name: str) -> Method:
    """Return the method called `name`, or the combination of several, as "replay+migu".

    Raises:
        ValueError: an unknown name, with the nearest ones; methods that cannot be combined.
    """
    if not isinstance(name, str) or JOINT not in name:
        return _look_up(name)
    return combined(name, [_look_up(part.strip()) for part in name.split(JOINT)])


def select_methods(
    methods: str | Method | Iterable[str | Method], changes: Mapping[str, Mapping[str, Any]]
) -> list[Method]:
    """Look the methods up by name and change their settings.

    Args:
        methods: names in METHODS, several of them with "+" between, or methods of the user's own;
            one or several.
        changes: {method name: {setting: value}}.

    Raises:
        ValueError: an unknown method or setting, with the nearest names; the same name twice;
            changes to a method that is not compared.
    """
    chosen: dict[str, Method] = {}
    for entry in [methods] if isinstance(methods, str | Method) else methods:
        method = entry if isinstance(entry, Method) else find_method(entry)
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
        if not (equals and dot and method and setting.strip()):
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
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"methods: unknown method {name!r}; {suggestion(str(name), METHODS)}")
    return METHODS[name]
