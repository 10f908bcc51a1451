"""What a file or a folder holds, in short: the same where it was moved, not where it changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from avalanche_mgem.files import file_digest

# What decides a model and a tokenizer of transformers, among what else lies in their folders.
_MODEL_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")
_ANSWER_FILES = (*_MODEL_FILES, "generation_config.json")
_TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model"),
)


def model_digest(folder: Path) -> str:
    """Return a digest of a model's configuration and weights, as transformers saves them."""
    return _digest_of_files(_found(folder, _MODEL_FILES))


def answering_model_digest(folder: Path) -> str:
    """Return the same of a model that answers in words, and of how it finds them."""
    return _digest_of_files(_found(folder, _ANSWER_FILES))


def tokenizer_digest(folder: Path) -> str:
    """Return a digest of a tokenizer's files, as transformers saves them."""
    return _digest_of_files(_found(folder, _TOKENIZER_FILES))


def _found(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest_of_files(paths: Iterable[Path]) -> str:
    lines = "".join(f"{path.name} {file_digest(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
