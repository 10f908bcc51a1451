"""What a sweep has found: fronts, their hypervolumes, and the files that tell of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from avalanche_mgem.experiment.comparison import RunsFailedError
from avalanche_mgem.experiment.sweep_plan import WORST, SweepPlan
from avalanche_mgem.experiment.sweep_studies import MethodStudy, diverged, error_of, with_params
from avalanche_mgem.files import write_atomically
from avalanche_mgem.methods.method import Method
from avalanche_mgem.methods.registry import find_method
from avalanche_mgem.results.csv import cell, csv_bytes
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import hypervolume, pareto_front
from avalanche_mgem.results.summary import BEST, FURTHER, HEADINGS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Point = tuple[float, ...]


@dataclass(frozen=True)
class Chosen:
    """Settings that a sweep has chosen.

    Args:
        method: with these settings; its name says which trial they are of.
        trial: the trial's number in the study.
        params: the settings that were tried.
        validation: the objectives on the validation data, means over the seeds of the trials.
        test: on the test data, over the other seeds; NaN where one diverged.
    """

    method: Method
    trial: int
    params: dict[str, Any]
    validation: Point
    test: Point = ()


@dataclass(frozen=True)
class Front:
    """The Pareto front of a method, or of one objective its best trial.

    Args:
        method: its name.
        objectives: the scores.
        chosen: sorted by the first objective.
    """

    method: str
    objectives: tuple[str, ...]
    chosen: tuple[Chosen, ...]

    @property
    def methods(self) -> list[Method]:
        """The chosen settings as methods."""
        return [each.method for each in self.chosen]

    @property
    def reference(self) -> Point:
        """The reference point of the hypervolumes: the worst value of each objective."""
        return tuple(WORST[name] for name in self.objectives)

    def hypervolume(self, data: str) -> float:
        """Return the hypervolume on the "validation" or "test" data; NaN of one objective."""
        if len(self.objectives) < 2:
            return math.nan
        reference = _upwards(self.objectives, self.reference)
        points = [_upwards(self.objectives, getattr(each, data)) for each in self.chosen]
        return hypervolume([_pair(point) for point in points], _pair(reference))


def chosen_fronts(plan: SweepPlan, studies: Sequence[MethodStudy]) -> list[Front]:
    """Return what is chosen of each study, not yet tested.

    Raises:
        RunsFailedError: a study has no trial to choose.
    """
    fronts = []
    for study in studies:
        trials = _to_choose_from(study)
        if not trials:
            errors = [error for trial in study.trials() if (error := error_of(trial))]
            why = errors[0] if errors else "all diverged or were pruned"
            raise RunsFailedError(f"{study.method.name}: no trial can be chosen: {why}")
        chosen = tuple(_chosen(study, trials[i]) for i in _best(plan, trials))
        fronts.append(Front(study.method.name, plan.objectives, chosen))
    return fronts


def with_tests(
    fronts: Sequence[Front], results: Sequence[RunResult], plan: SweepPlan
) -> list[Front]:
    """Return the fronts with the scores of the runs on the test data."""

    def tested(chosen: Chosen) -> Chosen:
        scores = [run.scores for run in results if run.method == chosen.method.name]
        means = (float(np.mean([one[name] for one in scores])) for name in plan.objectives)
        return replace(chosen, test=tuple(means))

    return [replace(front, chosen=tuple(map(tested, front.chosen))) for front in fronts]


def write_choice(
    fronts: Sequence[Front], plan: SweepPlan, studies: Sequence[MethodStudy], folder: Path
) -> None:
    """Write what was chosen, and all trials; test runs that fail take neither away."""
    write_atomically(folder / "best.toml", best_toml(fronts).encode())
    write_atomically(folder / "trials.csv", _trials_csv(plan, studies))


def present(
    fronts: Sequence[Front],
    plan: SweepPlan,
    studies: Sequence[MethodStudy],
    folder: Path,
    console: Console,
) -> None:
    """Write what the sweep has found on the test data, and show the fronts."""
    write_atomically(folder / "fronts.csv", _fronts_csv(fronts))
    console.print(_table(fronts))
    if len(plan.objectives) == 2:
        from avalanche_mgem.report.figures.canvas import png

        write_atomically(folder / "fronts.png", png(_figure(fronts, plan, studies)))
    lines = (f"Chosen settings: compare --methods-file {folder / 'best.toml'}",)
    for line in (*lines, f"Fronts and trials: {folder}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def best_toml(fronts: Sequence[Front]) -> str:
    """Return the chosen settings as methods, in the form that `load_methods` reads."""
    tables = []
    for front in fronts:
        usual = find_method(front.method).settings
        for each in front.chosen:
            scores = zip(front.objectives, each.validation, strict=True)
            told = ", ".join(f"{name} {value:.3f}" for name, value in scores)
            lines = {"base": front.method, "description": f"{front.method}: {told} on validation"}
            settings = {k: v for k, v in each.method.settings.items() if usual.get(k) != v}
            pairs = {**lines, **settings, **each.params}
            body = "".join(f"{_key(k)} = {json.dumps(v)}\n" for k, v in pairs.items())
            tables.append(f"[{_key(each.method.name)}]\n{body}")
    return "\n".join(tables)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _to_choose_from(study: MethodStudy) -> list[FrozenTrial]:
    finished = [t for t in study.trials() if t.state.name == "COMPLETE" and not diverged(t)]
    # Of equal settings the first: they have equal scores.
    return list({json.dumps(t.params, sort_keys=True): t for t in reversed(finished)}.values())[
        ::-1
    ]


def _best(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> list[int]:
    points = [_upwards(plan.objectives, tuple(trial.values)) for trial in trials]
    if len(plan.objectives) == 2:
        return pareto_front([_pair(point) for point in points])
    return [max(range(len(points)), key=lambda i: points[i])]


def _chosen(study: MethodStudy, trial: FrozenTrial) -> Chosen:
    name = f"{study.method.name}-trial{trial.number}"
    method = with_params(study.method, trial.params, name)
    return Chosen(method, trial.number, dict(trial.params), tuple(trial.values))


def _upwards(objectives: Sequence[str], values: Point) -> Point:
    """Return values so that large ones are good."""
    pairs = zip(objectives, values, strict=True)
    return tuple(value if BEST[name] is max else -value for name, value in pairs)


def _pair(point: Point) -> tuple[float, float]:
    return point[0], point[1]


def _trials_csv(plan: SweepPlan, studies: Sequence[MethodStudy]) -> bytes:
    settings = sorted({name for study in studies for name in study.method.space})
    columns = ["method", "trial", "state", *plan.objectives, "diverged", "error"]
    rows = []
    for study in studies:
        for trial in study.trials():
            values = trial.values or [math.nan] * len(plan.objectives)
            told = [study.method.name, trial.number, trial.state.name.lower(), *values]
            told += [diverged(trial), error_of(trial) or ""]
            rows.append([*told, *(trial.params.get(name, math.nan) for name in settings)])
    names = [*columns, *(f"settings.{name}" for name in settings)]
    return csv_bytes(names, [[cell(value) for value in row] for row in rows])


def _fronts_csv(fronts: Sequence[Front]) -> bytes:
    objectives = fronts[0].objectives
    columns = ["method", "name", "trial"]
    columns += [f"{data}_{name}" for data in ("validation", "test") for name in objectives]
    columns += ["validation_hypervolume", "test_hypervolume"]
    columns += [f"reference_{name}" for name in objectives]
    rows = [
        [
            *(front.method, each.method.name, each.trial, *each.validation, *each.test),
            *(front.hypervolume("validation"), front.hypervolume("test"), *front.reference),
        ]
        for front in fronts
        for each in front.chosen
    ]
    return csv_bytes(columns, [[cell(value) for value in row] for row in rows])


def _headings(objectives: Sequence[str]) -> list[str]:
    return [{**HEADINGS, **FURTHER}[name] for name in objectives]


def _table(fronts: Sequence[Front]) -> Table:
    """What was chosen: validation and test scores, settings, hypervolumes."""
    objectives = fronts[0].objectives
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    reference = ", ".join(f"{value:g}" for value in fronts[0].reference)
    table.caption = Text(
        "Means over the seeds; those of the test data are seeds that chose nothing."
        + (f" Hypervolume: from ({reference})." if len(objectives) == 2 else "")
    )
    table.title = "Chosen on the validation data, scored on the test data"
    for name in ("Method", "Settings"):
        table.add_column(name, overflow="fold")
    for data in ("val.", "test"):
        for heading in _headings(objectives):
            table.add_column(f"{heading} {data}", justify="right")
    for front in fronts:
        for each in front.chosen:
            settings = "\n".join(f"{k}={_short(v)}" for k, v in each.params.items()) or "-"
            scores = [f"{value:.3f}" for value in (*each.validation, *each.test)]
            table.add_row(Text(each.method.name), Text(settings), *scores)
        if len(objectives) == 2:
            volumes = [f"{front.hypervolume(data):.3f}" for data in ("validation", "test")]
            table.add_row(
                Text(f"{front.method}, hypervolume"),
                "",
                "",
                volumes[0],
                "",
                volumes[1],
                end_section=True,
            )
    return table


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(fronts: Sequence[Front], plan: SweepPlan, studies: Sequence[MethodStudy]) -> Any:
    from avalanche_mgem.report.figures.fronts import FrontPoints, fronts_figure

    def points(values: Sequence[Point]) -> list[tuple[float, float]]:
        return [_pair(_upwards(plan.objectives, value)) for value in values]

    methods = {
        front.method: FrontPoints(
            points([tuple(trial.values) for trial in _to_choose_from(study)]),
            points([each.validation for each in front.chosen]),
            points([each.test for each in front.chosen]),
        )
        for front, study in zip(fronts, studies, strict=True)
    }
    pairs = zip(plan.objectives, _headings(plan.objectives), strict=True)
    labels = [heading if BEST[name] is max else f"-{heading}" for name, heading in pairs]
    name = getattr(plan.stream, "name", "stream")
    return fronts_figure(methods, (labels[0], labels[1]), f"Fronts of a sweep: {name}")
