"""Finished runs read back, methods in the order of the registry."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from avalanche_mgem.methods.registry import METHODS
from avalanche_mgem.results import folders as results_folders
from avalanche_mgem.results.result import RunResult


def load_results(
    folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    only_methods: Sequence[str] | None = None,
    only_streams: Sequence[str] | None = None,
) -> list[RunResult]:
    """Return all finished runs of the results folders of `compare`, each run once.

    Methods come as in METHODS, others after them by name, unless `only_methods` gives an order;
    everything else is as in `avalanche_mgem.results.folders.load_results`.

    Raises:
        ValueError: as there.
    """
    runs = load_runs(folders, only_methods=only_methods, only_streams=only_streams)
    return [run for run, _ in runs]


def load_runs(
    folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    only_methods: Sequence[str] | None = None,
    only_streams: Sequence[str] | None = None,
) -> list[tuple[RunResult, Path]]:
    """Return what `load_results` does, each run with the file of its metrics over training."""
    return results_folders.load_runs(
        folders,
        only_methods=only_methods,
        only_streams=only_streams,
        method_order=tuple(METHODS),
    )
