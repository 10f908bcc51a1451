"""The solvers of the dual problem alone, against the call that GEMPlugin makes.

The problems are those of a training run: gradients on the memory of past tasks and on minibatches
of the current one. Only those where a row is violated count, as only they are solved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import qpsolvers
import torch
from avalanche.training.plugins import GEMPlugin, SupervisedPlugin
from clock import Pairs, in_turns, pair_numbers, repetitions, seconds_of
from cost_cases import RIDGE, Case
from numpy.typing import NDArray
from own_work import LEAD_IN, backward
from setting import (
    BATCH_SIZE,
    LEARNING_RATE,
    experience_of,
    gradient_vector,
    make_baseline,
    make_ours,
    make_strategy,
)

from avalanche_mgem import restriction

_ITERATIONS = 12
_ITERATIONS_OF_MANY_ROWS = 2
_MANY_ROWS = 500
_COLUMNS = 8192


@dataclass(frozen=True)
class Problem:
    """The Gram matrix [K, K] without its ridge, the dot products [K] and the gradient's length."""

    gram: NDArray[np.float64]
    dots: NDArray[np.float64]
    length: float


class _Collector(SupervisedPlugin):
    """Keeps the dual problem of every iteration of a run in which a row is violated."""

    def __init__(self, plugin: GEMPlugin) -> None:
        super().__init__()
        self._plugin = plugin
        self.problems: list[Problem] = []

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the problem; the training goes on as if there were no memory."""
        if strategy.clock.train_exp_iterations < LEAD_IN:
            return
        self._plugin.before_training_iteration(strategy)
        backward(strategy)
        gradient, rows = gradient_vector(strategy.model), self._plugin.G
        dots = (rows @ gradient).double().numpy()
        if (dots < 0).any():
            gram = _gram(rows)
            self.problems.append(Problem(gram, dots, float(gradient.double().norm())))


def find_solver(name: str) -> Any:
    """Return the solver of `avalanche_mgem.restriction` with this name; None: there is none."""
    solver = getattr(restriction, name, None)
    return None if solver is None else solver()


def measure_solver(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Return the row of one solver; the difference is that of A'v, relative to the gradient."""
    solver = find_solver(str(dict(case.arguments)["solver"]))
    problems = _problems(case.tasks, case.memory_groups)
    diagonal = getattr(solver, "diagonal_only", False)
    calls = [_calls(problem, solver, case.gamma, diagonal) for problem in problems]
    pairs, differences = Pairs(), []
    times: dict[str, int] = {}  # of each: some solvers are a thousand times faster than others
    for pair in pair_numbers(repeats):
        call, problem = calls[pair % len(calls)], problems[pair % len(calls)]
        times = times or {name: repetitions(seconds_of(each)) for name, each in call.items()}
        seconds, found = {}, {}
        for name in in_turns(pair):
            start = time.perf_counter()
            for _ in range(times[name]):
                found[name] = call[name]()
            seconds[name] = (time.perf_counter() - start) / times[name]
        pairs.add(**seconds)
        change = found["ours"] - found["baseline"]
        differences.append(float(np.sqrt(max(change @ problem.gram @ change, 0))) / problem.length)
    row = {"measure": "ratio", "unit": "ms", **pairs.summary()}
    return [row | {"gradient_difference": max(differences)}]


def _calls(problem: Problem, solver: Any, gamma: float, diagonal: bool) -> dict[str, Any]:
    lower = np.full(len(problem.dots), float(gamma))
    gram = problem.gram + RIDGE * np.eye(len(lower))
    given = np.diag(np.diagonal(problem.gram)) if diagonal else gram
    return {
        "ours": lambda: np.asarray(solver(given, problem.dots, lower)),
        "baseline": lambda: _as_gem_plugin(gram, problem.dots, lower),
    }


def _as_gem_plugin(
    gram: NDArray[np.float64], dots: NDArray[np.float64], lower: NDArray[np.float64]
) -> NDArray[np.float64]:
    solution: NDArray[np.float64] = qpsolvers.solve_qp(
        P=gram, q=dots, G=-np.eye(len(dots)), h=-lower, solver="quadprog"
    )
    return solution


def _gram(rows: torch.Tensor) -> NDArray[np.float64]:
    """Return the products of the rows in float64, a few columns at a time."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for columns in rows.split(_COLUMNS, dim=1):
        gram += columns.double() @ columns.double().T
    return gram.numpy()


@cache
def _problems(tasks: int, memory_groups: int) -> list[Problem]:
    case = Case("solver", "mlp", tasks, 256, 1, memory_groups, gamma=0.0, baseline="gem-groups")
    plugin = make_baseline(case, make_ours(case))
    collector = _Collector(plugin)
    strategy = make_strategy(case, [collector], len(plugin.memory_x), LEARNING_RATE)
    iterations = _ITERATIONS_OF_MANY_ROWS if case.rows > _MANY_ROWS else _ITERATIONS
    torch.manual_seed(0)
    strategy.train(experience_of(case, (LEAD_IN + iterations) * BATCH_SIZE))
    if not collector.problems:
        raise RuntimeError(f"no row was violated in {iterations} iterations of {case.name}")
    return collector.problems
