"""The finished runs of one or several results folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from avalanche_mgem.arguments import as_list, as_path, one_of
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.store import ResultStore
from avalanche_mgem.results.variants import identity, told_apart


def load_results(
    folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    only_methods: Sequence[str] | None = None,
    only_streams: Sequence[str] | None = None,
    method_order: Sequence[str] = (),
) -> list[RunResult]:
    """Return all finished runs of the results folders of `compare`, each run once.

    Runs of one name with other settings or versions are kept apart: the names get what differs in
    brackets, see `told_apart`. Streams and methods come in the order of `only_streams` and
    `only_methods`; else streams by name, and methods as in `method_order`, others after them by
    name.

    Args:
        folders: one or several.
        only_methods: methods to keep, with or without the brackets; None: all.
        only_streams: streams to keep, likewise.
        method_order: names of methods, in the order in which they are shown.

    Raises:
        ValueError: a folder is no such folder or has no finished run; a file in it is damaged; a
            method or stream that no run has, with the nearest names.
    """
    runs = load_runs(
        folders, only_methods=only_methods, only_streams=only_streams, method_order=method_order
    )
    return [run for run, _ in runs]


def load_runs(
    folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    only_methods: Sequence[str] | None = None,
    only_streams: Sequence[str] | None = None,
    method_order: Sequence[str] = (),
) -> list[tuple[RunResult, Path]]:
    """Return what `load_results` does, each run with the file of its metrics over training."""
    one = isinstance(folders, str | os.PathLike)
    what = "a results folder, or a list of them"
    paths = as_list("folders", [folders] if one else folders, (str, os.PathLike), what=what)
    if not paths:
        raise ValueError("folders must name at least one results folder, got none")
    runs: dict[str, tuple[RunResult, Path]] = {}
    for path in paths:
        for run, metrics in _finished_runs(as_path("folders", path)):
            runs.setdefault(identity(run), (run, metrics))
    plain = [run for run, _ in runs.values()]
    files = [metrics for _, metrics in runs.values()]
    found = list(zip(plain, told_apart(plain), files, strict=True))
    methods = _places("methods", only_methods, [(a.method, b.method) for a, b, _ in found])
    streams = _places("streams", only_streams, [(a.stream, b.stream) for a, b, _ in found])
    known = {name: place for place, name in enumerate(method_order)}

    def order(one_found: tuple[RunResult, RunResult, Path]) -> tuple[object, ...]:
        before, run, _ = one_found
        stream, method = streams[run.stream], methods[run.method]
        place = known.get(before.method, len(known))
        return stream, run.stream, method, place, run.method, run.seed

    kept = [each for each in found if each[1].stream in streams and each[1].method in methods]
    if not kept:
        raise ValueError(
            f"methods: none of {', '.join(only_methods or ())} was run on "
            f"{', '.join(only_streams or ())}"
        )
    return [(run, metrics) for _, run, metrics in sorted(kept, key=order)]


def _places(
    argument: str, only: Sequence[str] | None, names: Sequence[tuple[str, str]]
) -> dict[str, int]:
    """Return the names (with brackets) that are kept, and the place of each in `only`."""
    if only is None:
        return dict.fromkeys((full for _, full in names), 0)
    only = as_list(argument, only, str, what="a list of names")
    if not only:
        raise ValueError(f"{argument} must name at least one, got none")
    choices = sorted({name for pair in names for name in pair})
    for name in only:
        one_of(argument, name, choices)
    return {
        full: min(only.index(name) for name in (short, full) if name in only)
        for short, full in names
        if short in only or full in only
    }


def _finished_runs(folder: Path) -> list[tuple[RunResult, Path]]:
    """Return each run with the file of its metrics."""
    if not folder.exists():
        raise ValueError(f"folders: no results folder {folder}: it does not exist")
    try:
        store = ResultStore(folder)
    except ValueError as error:
        if _has_runs(folder):
            raise  # of a later version, or damaged, and said so
        raise ValueError(
            f"folders: {folder} is no results folder of a comparison{_hint(folder)}"
        ) from error
    if not _has_runs(folder):
        raise ValueError(f"folders: {folder} has no finished run{_hint(folder)}")
    keys = sorted(path.stem for path in store.runs.glob("*.json"))
    loaded = ((store.load(key), store.metrics_csv(key)) for key in keys)
    return [(run, metrics) for run, metrics in loaded if run is not None]


def _has_runs(folder: Path) -> bool:
    return any((folder / "runs").glob("*.json"))


def _hint(folder: Path) -> str:
    """Name the results folder that may have been meant: the one above, or those within."""
    if _has_runs(folder.parent):
        return f"; did you mean {folder.parent}?"
    inside = sorted(path for path in folder.iterdir() if _has_runs(path)) if folder.is_dir() else []
    return f"; did you mean {' '.join(map(str, inside[:3]))}?" if inside else ""
