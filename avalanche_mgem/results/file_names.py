"""Names of streams and methods as names of files."""

from __future__ import annotations

import hashlib
import re

_NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
_LONGEST = 100  # characters


def file_name(name: str) -> str:
    """Return a name that any system takes for a file: other for other names, mostly the same."""
    safe = _NOT_IN_FILE_NAMES.sub("_", name)[:_LONGEST].strip(". ")
    if safe == name:
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
