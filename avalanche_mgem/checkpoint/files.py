"""Replacing a checkpoint so that at any moment, power cuts included, a whole one is there."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.frame import is_whole
from avalanche_mgem.files import is_unfinished


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at path is kept."""
    return path.with_name(f"{path.name}.previous")


def damaged_of(path: Path) -> Path:
    """Where something at path that is no whole checkpoint is put aside."""
    return path.with_name(f"{path.name}.damaged")


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, the one before it, and what killed processes have left of them."""
    if path.parent.is_dir():
        _remove_unfinished(path)
    for each in (path, previous_of(path), damaged_of(path)):
        each.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError where there is no folder for a file at path."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent} for {path.name}")


def replace_checkpoint(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Put a new checkpoint at path, and keep the one that was there as the previous one.

    write: fills a new file and syncs it. What it raises leaves everything as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
        CheckpointError: path is a folder.
    """
    if path.is_dir():
        raise CheckpointError(f"path must name a file, got the folder {path}")
    _remove_unfinished(path)
    new = _unfinished(path)
    try:
        with new.open("xb") as file:
            write(file)
        _keep(path)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _keep(path: Path) -> None:
    if not path.exists():
        return
    if not is_whole(path):  # and must not take the place of the last whole one
        aside = path.replace(damaged_of(path))
        warnings.warn(f"what was at {path} is no whole checkpoint; now at {aside}", stacklevel=4)
        return
    link = _unfinished(path)
    try:
        # A second name first, so that path itself is never without a checkpoint.
        os.link(path, link)
        link.replace(previous_of(path))
    except OSError:  # no links here; loading looks at the previous one where there is no newest
        path.replace(previous_of(path))
    finally:
        link.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    name = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    assert is_unfinished(name, path.name)
    return name


def _remove_unfinished(path: Path) -> None:
    """Remove what killed processes have left; each may be as large as a checkpoint."""
    check_folder(path)
    for other in path.parent.iterdir():
        if is_unfinished(other, path.name):
            other.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """See to it that the new name, too, survives a power cut."""
    if os.name != "posix":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
