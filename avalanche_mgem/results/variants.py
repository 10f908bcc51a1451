"""Runs of one name with other settings, told apart, so that no mean is of several things."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from avalanche_mgem.results.csv import flat
from avalanche_mgem.results.result import RunResult

_GROUPS = ("settings", "training", "stream.arguments", "stream")  # what a name is told without
_UNTOLD = ("seed",)  # every run has its own
_SAID_BY_NAMES = ("strategy", "stream", "stream.type", "stream.name", "stream.sha256")
_LONGEST_VALUE = 40
_NOTHING = object()


def told_apart(results: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs, a name that stands for several things followed by what differs in brackets.

    A stream's name is followed by the arguments of the stream, as "split-mnist [n_experiences=5]";
    then a method's by its other settings, as "mgem-d [memory_groups=4]", and by versions where the
    settings are the same, as "gem [torch 2.9.0]". Names that stand for one thing stay as they are.
    """
    streams = _names(results, lambda run: (run.stream,), lambda run: run.stream, _stream_settings)
    results = [replace(run, stream=name) for run, name in zip(results, streams, strict=True)]
    methods = _names(
        results, lambda run: (run.method, run.stream), lambda run: run.method, _method_settings
    )
    return [replace(run, method=name) for run, name in zip(results, methods, strict=True)]


def identity(run: RunResult) -> str:
    """Return a text that two runs share if the same thing was run with the same seed."""
    parts = [run.method, run.stream, run.seed, run.configuration, run.versions]
    return json.dumps(parts, sort_keys=True)


def named_settings(run: RunResult) -> dict[str, Any]:
    """Return the configuration of a run by names that a person understands, without its seed.

    A name is the last part of the dotted path, or more of it where another one ends the same.
    """
    leaves = {**_method_settings(run)[0], **_stream_settings(run)[0]}
    names = _short_names(list(leaves))
    return {names[path]: value for path, value in leaves.items()}


def own_settings(run: RunResult) -> dict[str, Any]:
    """Return those of `named_settings` that the names of method and stream do not say."""
    named = named_settings(run).items()
    return {k: v for k, v in named if k not in _SAID_BY_NAMES and v is not None}


_Leaves = Mapping[str, Any]


def _stream_settings(run: RunResult) -> tuple[_Leaves, _Leaves]:
    return flat("stream", run.configuration.get("stream", {})), {}


def _method_settings(run: RunResult) -> tuple[_Leaves, _Leaves]:
    """Return the configuration but for seed and stream, and the versions."""
    leaves: dict[str, Any] = {}
    for key, value in run.configuration.items():
        if key != "stream" and key not in _UNTOLD:
            leaves |= flat(key, value)
    return leaves, run.versions


def _names(results: Sequence[RunResult], group: Any, name: Any, settings: Any) -> list[str]:
    """Return each run's name; within a group, runs get the same one if their settings are equal."""
    groups: dict[Any, list[int]] = {}
    for index, run in enumerate(results):
        groups.setdefault(group(run), []).append(index)
    names = [""] * len(results)
    for indices in groups.values():
        suffixes = _suffixes([settings(results[index]) for index in indices])
        for index, suffix in zip(indices, suffixes, strict=True):
            names[index] = name(results[index]) + suffix
    return names


def _suffixes(settings: Sequence[tuple[_Leaves, _Leaves]]) -> list[str]:
    """Return for each what differs among all; it tells settings apart exactly if they differ."""
    variants = [_text(one) for one in settings]
    if len(set(variants)) == 1:
        return [""] * len(settings)
    leaves, versions = [one[0] for one in settings], [one[1] for one in settings]
    texts = _differences(leaves, "{}={}")
    if not _tell_apart(texts, variants):
        of_versions = _differences(versions, "{} {}")
        texts = [", ".join(filter(None, pair)) for pair in zip(texts, of_versions, strict=True)]
    if not _tell_apart(texts, variants):  # long values that begin alike
        numbers = {variant: i for i, variant in enumerate(sorted(set(variants)), start=1)}
        texts = [
            ", ".join(filter(None, (text, f"variant {numbers[variant]}")))
            for text, variant in zip(texts, variants, strict=True)
        ]
    return [f" [{text}]" for text in texts]


def _tell_apart(texts: Sequence[str], variants: Sequence[str]) -> bool:
    return len(set(texts)) == len(set(variants)) and "" not in texts


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _differences(settings: Sequence[_Leaves], pattern: str) -> list[str]:
    """Return for each the leaves whose value is not the same in all."""
    paths = sorted({path for leaves in settings for path in leaves})
    differing = [path for path in paths if len({_value(leaves, path) for leaves in settings}) > 1]
    names = _short_names(paths)
    return [
        ", ".join(pattern.format(names[path], _value(leaves, path)) for path in differing)
        for leaves in settings
    ]


def _value(leaves: _Leaves, path: str) -> str:
    value = leaves.get(path, _NOTHING)
    if value is _NOTHING:
        return "default"
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return each path without the group that it is in, where no two become the same."""
    short = {path: _without_group(path) for path in paths}
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}


def _without_group(path: str) -> str:
    for group in _GROUPS:
        if path.startswith(f"{group}.") and (group != "stream" or path.count(".") > 1):
            return path.removeprefix(f"{group}.")
    return path
