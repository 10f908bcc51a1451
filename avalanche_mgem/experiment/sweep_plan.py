"""What a sweep is asked for, checked before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from avalanche_mgem.arguments import as_list, one_of, positive_int
from avalanche_mgem.experiment.configuration import RunSpecification, Training
from avalanche_mgem.experiment.early import REFUSALS
from avalanche_mgem.experiment.models import ModelFactory
from avalanche_mgem.methods.method import Method
from avalanche_mgem.methods.space import Space, load_spaces
from avalanche_mgem.results.describe import describe
from avalanche_mgem.results.summary import BEST

# Not the brute-force one, which stops studies that were never started by `optimize`.
SAMPLERS = ("tpe", "random", "nsga2", "gp", "qmc")
PRUNERS = ("wilcoxon", "median", "none")
OBJECTIVES = tuple(BEST)
WORST = {**dict.fromkeys(BEST, 0.0), "bwt": -1.0, "forgetting": 1.0}
"""The worst value of each score, which a run that diverged counts as."""
_AT_THE_END = ("acc", "acc_task_il")  # what a training on the whole stream has
_HELD_OUT = 0.1


@dataclass(frozen=True)
class SweepPlan:
    """How settings are chosen.

    Args:
        methods: whose `space` is tried.
        stream, model, training: of every run; training holds data out.
        seeds: of every trial.
        objectives: one or two scores, on the validation data.
        trials: of each method that has something to choose.
        sampler, pruner: by name.
        sampler_seed: of the sampler.
    """

    methods: tuple[Method, ...]
    stream: Callable[[int], Any]
    model: ModelFactory
    training: Training
    seeds: tuple[int, ...]
    objectives: tuple[str, ...]
    trials: int
    sampler: str
    pruner: str
    sampler_seed: int

    def __post_init__(self) -> None:
        one_of("sampler", self.sampler, SAMPLERS)
        one_of("pruner", self.pruner, PRUNERS)
        positive_int("trials", self.trials)
        positive_int("sampler_seed", self.sampler_seed, minimum=0)
        _check_objectives(self.objectives, self.methods)
        if self.pruner != "none" and len(self.objectives) > 1:
            raise ValueError(
                f"pruner={self.pruner!r} needs one objective, got {','.join(self.objectives)}"
            )

    def specification(self, method: Method, seed: int) -> RunSpecification:
        """Return one run of a trial."""
        return RunSpecification(method, self.stream, seed, self.model, self.training)

    def budget(self, method: Method) -> int:
        """How many trials a method has: one where there is nothing to choose."""
        return self.trials if method.space else 1

    def digest(self, method: Method) -> str:
        """Return a short name for all that decides what a trial's numbers mean."""
        run = self.specification(method, 0)
        described = run.description()
        for setting in method.space:
            described["settings"].pop(setting, None)
        space = {name: describe(dimension) for name, dimension in sorted(method.space.items())}
        rest = [space, self.objectives, self.seeds, run.versions]
        return hashlib.sha256(json.dumps([described, *rest]).encode()).hexdigest()[:10]


def sweep_training(training: Training) -> Training:
    """Return the training of the trials: a tenth is held out where nothing else is said."""
    return training if training.validation else replace(training, validation=_HELD_OUT)


def with_spaces(
    methods: Sequence[Method], space: Any, fixed: Mapping[str, Mapping[str, Any]]
) -> tuple[Method, ...]:
    """Return the methods with the spaces to sweep.

    space: None: their own; a TOML file's path; or {method: {setting: dimension}}. A method that is
    not in it keeps its own. fixed: {method: {setting: value}}, which are not swept.

    Raises:
        ValueError: a method that is not swept, a setting that a method does not have, or one that
            is fixed.
    """
    if space is None:
        return tuple(methods)
    spaces: Mapping[str, Space] = space if isinstance(space, Mapping) else load_spaces(space)
    names = [method.name for method in methods]
    for name in spaces:
        one_of("space", name, names)
    return tuple(
        _with_space(method, spaces[method.name], fixed.get(method.name, {}))
        if method.name in spaces
        else method
        for method in methods
    )


def _with_space(method: Method, space: Space, fixed: Mapping[str, Any]) -> Method:
    try:
        known = {method.known_setting(name): each for name, each in space.items()}
        held = {method.known_setting(name) for name in fixed}
    except ValueError as error:
        raise ValueError(f"space: {error}") from error
    for name in sorted(held.intersection(known)):
        raise ValueError(f"space: {method.name}.{name} is fixed by settings; leave it out of one")
    return replace(method, space=known)


def check_corners(plan: SweepPlan, n_experiences: int) -> None:
    """Raise ValueError where a method refuses the ends of a range, or a choice."""
    for method in plan.methods:
        for name, dimension in method.space.items():
            for value in dimension.corners:
                settings = {**method.settings, name: value}
                tried = replace(method, settings=settings)
                try:
                    if tried.check is not None:
                        resolved = tried.resolved_settings(plan.training.memory, n_experiences)
                        tried.check(resolved, n_experiences)
                except REFUSALS as error:
                    raise ValueError(
                        f"space: {method.name} refuses {name}={value!r}: {error}"
                    ) from error


def require_optuna() -> None:
    """Raise ValueError where optuna is not installed."""
    if find_spec("optuna") is None:
        raise ValueError("sweep needs optuna: pip install 'avalanche-mgem[sweep]'")


def objective_names(objective: Any) -> tuple[str, ...]:
    """Return the names of scores in a text with commas between, or in a list."""
    if isinstance(objective, str):
        return tuple(name.strip() for name in objective.split(","))
    return tuple(as_list("objective", objective, str, what="names of scores"))


def _check_objectives(objectives: Sequence[str], methods: Sequence[Method]) -> None:
    for name in objectives:
        one_of("objective", name, OBJECTIVES)
    if not 1 <= len(objectives) <= 2 or len(set(objectives)) < len(objectives):
        raise ValueError(f"objective must be one or two scores, got {','.join(objectives)!r}")
    for method in methods:
        missing = [name for name in objectives if name not in _AT_THE_END]
        if method.whole_stream and missing:
            raise ValueError(
                f"objective: {method.name} is trained once on the whole stream and has no "
                f"{missing[0]}"
            )
