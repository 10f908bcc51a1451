"""What is measured on a GPU.

A job is one comparison: of mGEM with Avalanche's GEMPlugin, or of a step with MIGU's gate with the
plain step. What matters most comes first, so that a run that is stopped has told it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from cost_cases import Case, Target
from gate_setting import Variant
from gpu_measure import Effort, measure_gate, measure_projection, measure_step
from solvers import measure_solver

_PRECISIONS = ("float32", "bf16")
_MASK_FRACTION = 0.7
_PARAMETERS = 89_610  # of the MLP 784-100-100-10

Measure = Callable[[torch.device, Effort], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One comparison.

    Args:
        name: what tells it from all others.
        precision: of ours: "float32", "bf16" (the training step under autocast) or "bf16 memory"
            (the memory's passes alone).
        measure: returns its row.
        settings: further columns of the row.
        target: of the ratio baseline / ours.
        reason: why it cannot be measured; empty: it can.
    """

    name: str
    precision: str
    measure: Measure
    settings: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None
    reason: str = ""


def all_jobs() -> list[Job]:
    """Every job, for a GPU."""
    return list(_jobs())


def tiny_jobs() -> list[Job]:
    """One of each kind, for a CPU: they show that it runs."""
    small = Case("train", "mlp", 1, 25)
    return [
        _step(small),
        _step(Case("train", "mlp", 1, 25, memory_groups=2, baseline="gem-groups")),
        _step(Case("train", "mlp", 1, 25, arguments=(("memory_precision", "bf16"),))),
        *(_gate("mlp", freeze, "float32") for freeze in ("gradient", "update")),
        _gate("mlp", "update", "bf16"),
        _projection(4, 1000),
        _solver("PivotingSolver", 1, 8),
    ]


def _jobs() -> Iterator[Job]:
    bf16 = (("memory_precision", "bf16"),)
    for tasks, patterns in product((20, 5, 1), (256, 25)):
        target = Target(4.0) if (tasks, patterns) == (20, 256) else None
        yield _step(Case("train", "mlp", tasks, patterns), target=target)
        yield _step(Case("train", "mlp", tasks, patterns, arguments=bf16), target=target)
    for model, freeze, precision in product(
        ("encoder", "bert-base"), ("gradient", "update"), _PRECISIONS
    ):
        yield _gate(model, freeze, precision)
    for patterns in (256, 25):
        yield _step(Case("train", "resnet", 5, patterns))
        yield _step(Case("train", "resnet", 5, patterns, arguments=bf16))
    yield _step(Case("train", "mlp", 20, 256, memory_groups=8, baseline="gem-groups"))
    yield _step(Case("train", "resnet", 5, 256, arguments=(("memory_format", "channels_last"),)))
    yield _step(Case("train", "mlp", 20, 256), "bf16")
    yield _step(Case("train", "resnet", 5, 256), "bf16")
    yield _step(Case("train", "mlp", 20, 256), host=False)
    for rows in (20, 160):
        yield _projection(rows, _PARAMETERS)
        yield _solver("PivotingSolver", 20, rows // 20)


def _step(
    case: Case, precision: str = "float32", *, host: bool = True, target: Target | None = None
) -> Job:
    missing = case.missing_arguments()
    arguments = dict(case.arguments)
    name = case.name.replace("train", "step", 1)
    told = precision
    if "memory_precision" in arguments:
        told = f"{arguments['memory_precision']} memory"
    name += "" if precision == "float32" else " autocast"
    return Job(
        name if host else f"{name} on-device",
        told,
        lambda device, effort: measure_step(case, precision, device, effort, host=host),
        {
            "what": "step",
            **_columns(case),
            "baseline": "GEMPlugin" + ("" if host else ", its patterns on the device"),
        },
        target,
        f"MGEMPlugin has no {', '.join(missing)}" if missing else "",
    )


def _gate(model: str, freeze: str, precision: str) -> Job:
    variant = Variant(freeze, _MASK_FRACTION)
    return Job(
        f"gate {model} {variant.name} {precision}",
        precision,
        lambda device, effort: measure_gate(model, variant, precision, device, effort),
        {"what": "gate", "model": model, "arguments": variant.name, "baseline": "plain step"},
    )


def _projection(rows: int, columns: int) -> Job:
    return Job(
        f"project K{rows} P{columns}",
        "float32",
        lambda device, effort: measure_projection(rows, columns, device, effort),
        {"what": "project", "gamma": 0.5, "baseline": "GEMPlugin.solve_quadprog"},
    )


def _solver(name: str, tasks: int, groups: int) -> Job:
    arguments = (("solver", name),)
    case = Case("solver", "mlp", tasks, 256, 1, groups, 0.5, "qpsolvers", arguments)

    return Job(
        case.name,
        "float64",
        lambda _, effort: measure_solver(case, effort.pairs)[0],
        {"what": "solver", **_columns(case), "baseline": "qpsolvers, quadprog; on the host"},
    )


def _columns(case: Case) -> dict[str, Any]:
    names = ("model", "tasks", "patterns", "parameter_groups", "memory_groups", "gamma")
    further = " ".join(f"{key}={value}" for key, value in case.arguments)
    return {name: getattr(case, name) for name in names} | {"arguments": further}
