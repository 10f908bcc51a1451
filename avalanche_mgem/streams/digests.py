"""What a file holds, in short."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


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
