"""What a file or a folder holds, in short: the same where it was moved, not where it changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

# What decides a model and a tokenizer of transformers, among what else lies in their folders.
_MODEL_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model"),
)


def file_digest(path: Path) -> str:
    """Return a digest of a file's contents; read anew only where it has changed since."""
    state = path.stat()
    return _digest_of_version(path, state.st_mtime_ns, state.st_size)


def model_digest(folder: Path) -> str:
    """Return a digest of a model's configuration and weights, as transformers saves them."""
    return _digest_of_files(_found(folder, _MODEL_FILES))


def tokenizer_digest(folder: Path) -> str:
    """Return a digest of a tokenizer's files, as transformers saves them."""
    return _digest_of_files(_found(folder, _TOKENIZER_FILES))


def _found(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest_of_files(paths: Iterable[Path]) -> str:
    lines = "".join(f"{path.name} {file_digest(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@lru_cache(maxsize=256)
def _digest_of_version(path: Path, *_version: int) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()[:16]
