"""Writing files so that nothing a user has is ever half lost, and telling files apart."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import uuid
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".tmp"


def is_unfinished(path: Path, name: str) -> bool:
    """Whether `path` is what `write_atomically` leaves of a file `name` when it is killed."""
    # No other letters between them: those of "run.ckpt" begin as those of "run" do.
    pattern = rf"\.{re.escape(name)}\.[0-9a-f]{{32}}{re.escape(_SUFFIX)}"
    return re.fullmatch(pattern, path.name) is not None


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at path with data, so that a reader sees the old or the new file, whole.

    Raises:
        ValueError: the path has no name.
        OSError: if the folder does not exist or cannot be written; the old file is then unchanged.
    """
    target = Path(path)
    if not target.name:
        raise ValueError(f"path must name a file, got {str(path)!r}")
    # Not tempfile: its files are private to the user, and the mode would stay after the rename.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Lock a file, open for writing, as long as it is open; False: another process has done so.

    On Windows nothing is locked. wait: until the other process ends its lock.

    Raises:
        OSError: a file system without locks.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def read_toml(name: str, path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; ValueError, with the argument's name, where it cannot be."""
    try:
        with path.open("rb") as file:
            tables: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        raise ValueError(f"{name} {path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # also what is no UTF-8
        raise ValueError(f"{name} {path}: is no valid TOML: {error}") from error
    return tables


def file_digest(path: Path) -> str:
    """Return a digest of a file's contents; read anew only where it has changed since."""
    state = path.stat()
    return _digest_of_version(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1 << 16)  # of file names, for folders of images
def _digest_of_version(path: Path, *_version: int) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()[:16]
