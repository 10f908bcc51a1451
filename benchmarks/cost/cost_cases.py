"""What is measured, and the figures that it should reach.

A case is one comparison of MGEMPlugin with a baseline, in one setting. Those of the figures to
reach come first, so that a run that is stopped has told what matters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from avalanche_mgem import MGEMPlugin

TASKS = (1, 5, 10, 20, 50, 100)
PATTERNS = (25, 256)
GAMMAS = (0.0, 0.5)
_HALF = (("memory_precision", "bf16"),)
RIDGE = 1e-3  # what GEMPlugin adds to the diagonal of its Gram matrix


@dataclass(frozen=True)
class Target:
    """What a measured value should reach; `below`: values should be smaller, not larger."""

    at_least: float
    aim: float | None = None
    below: bool = False

    def verdict(self, value: float) -> str:
        """Return "aim", "reached" or "MISSED"."""
        if self.aim is not None and self._reaches(value, self.aim):
            return "aim"
        return "reached" if self._reaches(value, self.at_least) else "MISSED"

    def _reaches(self, value: float, bound: float) -> bool:
        return value <= bound if self.below else value >= bound


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        what: "own" (the plugin's own work in an iteration), "train" (a whole strategy.train()),
            "memory" (extra peak memory) or "solver" (the dual problem alone, of T * groups rows).
        model: "mlp" (784-100-100-10), "wide" (784-1024-960-10) or "resnet" (GEM's ResNet-18).
        tasks: T, the number of past tasks.
        patterns: M, the patterns stored of each.
        parameter_groups: of MGEMPlugin; likewise memory_groups.
        gamma: the memory strength, of every row where the baseline solves the same problem.
        baseline: "gem": GEMPlugin on the same memory, a row a task. "gem-groups": GEMPlugin that is
            told that each group is a task, which is the arithmetic of d-mGEM. Of solvers and of
            memory there is one each.
        arguments: further ones of MGEMPlugin. Of a solver its class name.
        figure: what it is called in table.md, where it has a target.
        target: of the ratio (of a solver: of its milliseconds; of memory: of the units used).
        share: the target of the projection's share of a training iteration.
    """

    what: str
    model: str = "mlp"
    tasks: int = 20
    patterns: int = 256
    parameter_groups: int | str = 1
    memory_groups: int = 1
    gamma: float = 0.5
    baseline: str = "gem"
    arguments: tuple[tuple[str, int | str], ...] = ()
    figure: str = ""
    target: Target | None = None
    share: Target | None = None

    @property
    def name(self) -> str:
        """What tells this case from all others."""
        further = [f"{key}={value}" for key, value in self.arguments]
        if self.what == "solver":
            return " ".join(["solver", f"K{self.rows} gamma{self.gamma:g}", *further])
        groups = f"p{self.parameter_groups} d{self.memory_groups}"
        sizes = f"T{self.tasks} M{self.patterns} {groups} gamma{self.gamma:g}"
        return " ".join([self.what, self.model, sizes, f"vs-{self.baseline}", *further])

    @property
    def rows(self) -> int:
        """K, the memory rows of MGEMPlugin."""
        return self.tasks * min(self.memory_groups, self.patterns)

    @property
    def same_problem(self) -> bool:
        """Whether both sides should end with the same parameters."""
        same_rows = self.memory_groups == 1 or self.baseline == "gem-groups"
        return self.parameter_groups == 1 and same_rows and not self.arguments

    @property
    def wants_bf16_units(self) -> bool:
        """Whether it measures the speed of bfloat16, which is several times lower without units."""
        return self.what != "memory" and _HALF[0] in self.arguments

    def missing_arguments(self) -> list[str]:
        """Return the further arguments that this MGEMPlugin does not take."""
        known = inspect.signature(MGEMPlugin).parameters
        return [key for key, _ in self.arguments if self.what != "solver" and key not in known]


def all_cases() -> list[Case]:
    """Every case once, the figures to reach first."""
    chosen: dict[str, Case] = {}
    for case in [*_figures(), *_solvers(), *_rest()]:
        chosen.setdefault(case.name, case)
    return list(chosen.values())


def quick_cases() -> list[Case]:
    """A few that take seconds each."""
    return [
        Case("own", tasks=5, patterns=25),
        Case("own", tasks=5, patterns=25, parameter_groups=8),
        Case("own", tasks=5, patterns=25, memory_groups=8, baseline="gem-groups"),
        Case("train", tasks=5, patterns=25),
        Case("train", tasks=5, patterns=256, arguments=(("memory_batch_size", 25),)),
        _solver("QuadprogSolver", 20, 0.0),
        _solver("PivotingSolver", 20, 0.0),
        _solver("DiagonalSolver", 20, 0.0),
    ]


def _figures() -> Iterator[Case]:
    sampled = (("memory_batch_size", 25),)
    share = Target(0.10, 0.03, below=True)
    for gamma in reversed(GAMMAS):
        yield Case("own", gamma=gamma, figure="MLP, M=256", target=Target(1.2, 1.4))
    for gamma in reversed(GAMMAS):
        yield Case("own", patterns=25, gamma=gamma, figure="MLP, M=25", target=Target(2.5, 3.0))
    for gamma, target in ((0.5, Target(4.0, 5.4)), (0.0, Target(2.3, 3.0))):
        groups = {"memory_groups": 8, "baseline": "gem-groups"}
        yield Case("own", gamma=gamma, **groups, figure="d-mGEM", target=target)
    yield Case("train", arguments=sampled, figure="memory_batch_size", target=Target(5.0, 8.0))
    for groups, patterns in product((1, 8), (256, 25)):
        yield Case("train", patterns=patterns, parameter_groups=groups, figure="share", share=share)
    for name in ("PivotingSolver", "QuadprogSolver"):
        for gamma, milliseconds in ((0.0, 1.0), (0.5, 0.1)):
            yield _solver(name, 160, gamma, "QP, 160 rows", Target(milliseconds, below=True))
    for patterns in reversed(PATTERNS):
        most = Target(1.4, 1.2, below=True)
        yield Case("memory", "wide", patterns=patterns, figure="peak memory", target=most)
    for tasks, patterns in product((5, 1), PATTERNS):
        yield Case(
            "own", "resnet", tasks, patterns, figure="slim ResNet-18", target=Target(0.95, 1.05)
        )
    yield from _few_tasks()
    yield from _memory_passes()


def _few_tasks() -> Iterator[Case]:
    for tasks, least in ((1, 0.9), (3, 1.0)):
        for patterns, gamma in product(PATTERNS, reversed(GAMMAS)):
            wanted = {"figure": "few past tasks", "target": Target(least)}
            yield Case("own", "mlp", tasks, patterns, gamma=gamma, **wanted)


def _memory_passes() -> Iterator[Case]:
    last = (("memory_format", "channels_last"),)
    for patterns in reversed(PATTERNS):
        wanted = {"figure": "bf16 memory", "target": Target(3.0)}
        yield Case("train", patterns=patterns, arguments=_HALF, **wanted)
    least = Target(2.3)
    yield Case("train", "resnet", 5, 256, arguments=_HALF, figure="bf16 memory", target=least)
    for patterns, ratio in ((25, 1.25), (256, 1.5)):
        wanted = {"figure": "channels_last", "target": Target(ratio)}
        yield Case("own", "resnet", 5, patterns, arguments=last, **wanted)
    for patterns in reversed(PATTERNS):
        wanted = {"figure": "peak memory, bf16", "target": Target(0.7, 0.6, below=True)}
        yield Case("memory", "wide", patterns=patterns, arguments=_HALF, **wanted)


def _solver(
    name: str, rows: int, gamma: float, figure: str = "", target: Target | None = None
) -> Case:
    tasks, groups = {8: (1, 8), 20: (20, 1), 160: (20, 8), 1000: (100, 10)}[rows]
    return Case(
        "solver",
        tasks=tasks,
        memory_groups=groups,
        gamma=gamma,
        baseline="qpsolvers",
        arguments=(("solver", name),),
        figure=figure,
        target=target,
    )


def _solvers() -> Iterator[Case]:
    # gamma of GEM, and where there are groups, what each of them gets of it.
    for rows, gammas in (
        (8, (*GAMMAS, 0.5 / 8)),
        (20, GAMMAS),
        (160, (*GAMMAS, 0.5 / 8)),
        (1000, (0.0, 0.5 / 10)),
    ):
        for gamma in gammas:
            for name in ("PivotingSolver", "QuadprogSolver", "DiagonalSolver"):
                yield _solver(name, rows, gamma)


def _rest() -> Iterator[Case]:
    for gamma in GAMMAS:
        yield Case("train", memory_groups=8, gamma=gamma, baseline="gem-groups")
        yield Case("train", gamma=gamma, arguments=(("refresh_every", 2),))
    yield Case("memory", "wide", 20, 25, parameter_groups=8)
    for patterns in PATTERNS:
        yield Case("own", patterns=patterns, arguments=_HALF)
    # From the fewest tasks up: the longest cases come last.
    for tasks, patterns, gamma in product(TASKS, PATTERNS, GAMMAS):
        yield Case("own", "mlp", tasks, patterns, gamma=gamma)
        for parameter_groups in (8, "tensor"):
            yield Case("own", "mlp", tasks, patterns, parameter_groups, gamma=gamma)
        # Of many tasks the arithmetic is the same and only takes longer.
        for baseline in ("gem-groups", "gem") if tasks <= 20 else ("gem-groups",):
            yield Case("own", "mlp", tasks, patterns, 1, 8, gamma, baseline)
        if gamma:
            yield Case("own", "mlp", tasks, patterns, 8, 8, gamma, "gem-groups")
    for tasks, patterns in ((1, 25), (1, 256), (5, 25)):
        yield Case("own", "resnet", tasks, patterns, gamma=0.0)
    yield Case("train", "resnet", 5, 25)
