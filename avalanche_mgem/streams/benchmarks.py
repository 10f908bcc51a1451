"""Benchmarks of Avalanche's, however they were made, as strategies and heads of all kinds need."""

from __future__ import annotations

from typing import Any

from avalanche.benchmarks import CLScenario, OnlineCLExperience
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    TaskAwareSupervisedClassificationDataset,
)

from avalanche_mgem.streams.labels import labels_of
from avalanche_mgem.streams.scenario import scenario_of, task_aware

STREAMS = ("train", "test")
_ONLINE = (
    "stream: {} is an online one; give the scenario that it was cut from, whose experiences are "
    "trained on in one pass with epochs=1"
)


def complete_scenario(scenario: Any) -> Any:
    """Return a benchmark with all that training needs: itself, or where it lacks something, a copy.

    The copy has the same data sets, task label 0 where they have none, and for each experience its
    classes as sorted lists; lazy streams are read. So benchmarks of `benchmark_from_datasets`,
    `class_incremental_benchmark`, `nc_benchmark` and the like can all be trained on. One test
    experience with the classes and task labels of all training experiences, which
    `ni_benchmark` makes, is the test set of each of them.

    Raises ValueError for what has no train_stream and test_stream of as many experiences and at
    least one; for an online stream; for data sets that are not Avalanche's, or without labels.
    """
    train, test = (_experiences(scenario, name) for name in STREAMS)
    if len(test) == 1 < len(train) and _covers(test[0], train):
        test = test * len(train)
    elif len(train) != len(test) or not train:
        raise ValueError(
            "stream must have as many test as training experiences and at least one, got "
            f"{len(train)} training and {len(test)} test experiences"
        )
    elif all(map(_is_complete, [*train, *test])) and all(map(_is_listed, _streams(scenario))):
        return scenario
    parts = {"train": train, "test": test}
    return rebuilt({name: [(e, _aware(e)) for e in found] for name, found in parts.items()})


def rebuilt(
    streams: dict[str, list[tuple[Any, TaskAwareSupervisedClassificationDataset]]],
) -> CLScenario:
    """Make a scenario of data sets, each in place of an experience's, whose other notes stay."""
    datasets = {name: [dataset for _, dataset in parts] for name, parts in streams.items()}
    scenario = scenario_of(**datasets)
    for name, parts in streams.items():
        for experience, (former, _) in zip(scenario.streams[name], parts, strict=True):
            for note, value in vars(former).items():
                if not note.startswith("_") and not hasattr(experience, note):
                    setattr(experience, note, value)
    return scenario


def _streams(scenario: Any) -> list[Any]:
    return [getattr(scenario, f"{name}_stream") for name in STREAMS]


def _is_listed(stream: Any) -> bool:
    return hasattr(stream, "__len__")  # else its experiences are made as they are asked for


def _experiences(scenario: Any, name: str) -> list[Any]:
    if hasattr(scenario, f"{name}_online_stream"):
        raise ValueError(_ONLINE.format(f"{name}_online_stream"))
    try:
        experiences = list(getattr(scenario, f"{name}_stream"))
    except (AttributeError, TypeError) as error:
        raise ValueError(
            "stream must return an Avalanche scenario with a train_stream and a test_stream, got "
            f"{type(scenario).__name__}"
        ) from error
    online = [each for each in experiences if isinstance(each, OnlineCLExperience)]
    if any(each.origin_experience is None for each in online):
        raise ValueError(
            "stream must have training experiences that are a task each, got a blurry one, whose "
            "experiences hold samples of several: its accuracies make no matrix of tasks"
        )
    if online:
        raise ValueError(_ONLINE.format(f"{name}_stream"))
    return experiences


def _covers(test: Any, train: list[Any]) -> bool:
    """Whether all classes and task labels that are trained on are tested in one experience."""
    tested, trained = _aware(test), [_aware(each) for each in train]
    return all(
        getattr(each, name).uniques <= getattr(tested, name).uniques
        for each in trained
        for name in ("targets", "targets_task_labels")
    )


def _is_complete(experience: Any) -> bool:
    data = getattr(experience, "dataset", None)
    return (
        isinstance(getattr(experience, "classes_in_this_experience", None), list)
        and hasattr(experience, "task_labels")
        and hasattr(data, "targets")
        and hasattr(data, "targets_task_labels")
    )


def _aware(experience: Any) -> TaskAwareSupervisedClassificationDataset:
    data = getattr(experience, "dataset", None)
    if not isinstance(data, AvalancheDataset) or len(data) == 0:
        raise ValueError(
            f"stream: experience {experience.current_experience} must have a dataset of "
            f"Avalanche's with samples, got {type(data).__name__}"
        )
    tasks = data._data_attributes.get("targets_task_labels")
    try:
        return task_aware(data, labels_of(data), tasks or ConstantSequence(0, len(data)))
    except ValueError as error:
        raise ValueError(f"stream: experience {experience.current_experience}: {error}") from error
