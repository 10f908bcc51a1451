"""Texts as token ids: made by any tokenizer, kept on disk or in memory, so that it is done once."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avalanche_mgem.arguments import as_list, as_path, bounded_int
from avalanche_mgem.files import write_atomically

Texts = Sequence[str] | Sequence[tuple[str, str]]
Tokenizer = Callable[..., Mapping[str, Any]]

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"

_LENGTHS = "lengths"
_FIELD = "field_"
_VERSION = 1  # of the cache's files; another one never meets theirs
_PROBES = 8
_IN_MEMORY = 128  # results kept where no folder is given: fifteen tasks, four each, twice over
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

_memory: OrderedDict[str, Tokens] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of N texts of different lengths, unpadded.

    lengths: int32 [N]. fields: "input_ids", "attention_mask" and whatever else the tokenizer gives
    for each token, all int32 [sum of the lengths], text after text.
    """

    lengths: NDArray[np.int32]
    fields: dict[str, NDArray[np.int32]]

    def __post_init__(self) -> None:
        _check_arrays(self.lengths, self.fields)
        ends = np.cumsum(self.lengths, dtype=np.int64)
        object.__setattr__(self, "_ends", ends)
        if INPUT_IDS not in self.fields or (self.lengths <= 0).any():
            raise ValueError("fields need input_ids, and lengths of one or more for each text")
        if any(len(field) != ends[-1:].sum() for field in self.fields.values()):
            raise ValueError("the fields of tokens must have the lengths that they say")

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> dict[str, Tensor]:
        """The fields of one text, each int64 [length]."""
        end = int(self._ends[index])  # type: ignore[attr-defined]
        part = slice(end - int(self.lengths[index]), end)
        return {
            name: torch.from_numpy(values[part].astype(np.int64))
            for name, values in self.fields.items()
        }


def tokenized(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    cache_folder: Path | str | None = None,
) -> Tokens:
    """Return the tokens of texts (or of pairs of texts), made by the tokenizer or found again.

    tokenizer: called as tokenizer(list of texts or of pairs, max_length=max_length), with
    truncation=True besides where it takes that, as those of transformers do. It returns a mapping
    with "input_ids", a list of lists, and may give more for each token ("attention_mask", which is
    else all ones, "token_type_ids"). What it does not cut at max_length is cut here. It must always
    make the same of a text.

    cache_folder: where results are kept as .npz files, made if it is not there; a damaged file is
    made anew, and processes may share the folder. None: the latest results are kept in memory. A
    result is found by the texts, max_length, what the tokenizer says of itself (class, name, size
    of the vocabulary) and what it makes of a few of the texts.

    Raises ValueError for a tokenizer that does not fit, naming what it did, for a text of which it
    makes no token, and for a folder that cannot be used.
    """
    max_length = check_tokenizing(tokenizer, max_length, cache_folder)
    texts = as_list("texts", texts, (str, tuple), what="a list of texts or of pairs")
    if not texts or not all(map(_is_text, texts)):
        raise ValueError(f"texts must be one or more, each a text or a pair, got {texts[:3]}")
    key = _key(texts, tokenizer, max_length)
    if cache_folder is None:
        return _from_memory(key, lambda: _tokens(texts, tokenizer, max_length))
    folder = _folder(cache_folder)
    file = folder / f"tokens-{key}.npz"
    found = _read(file, len(texts))
    if found is None:
        found = _tokens(texts, tokenizer, max_length)
        _write(file, found)
    return found


def check_tokenizing(tokenizer: object, max_length: object, cache_folder: Path | str | None) -> int:
    """Return max_length as an int; ValueError for what is wrong in `tokenized` without a text."""
    if not callable(tokenizer) or isinstance(tokenizer, type):
        raise ValueError(f"tokenizer must be callable, got {type(tokenizer).__name__}")
    if cache_folder is not None:
        as_path("cache_folder", cache_folder)
    return bounded_int("max_length", max_length)


def _is_text(text: object) -> bool:
    pair = text if isinstance(text, tuple) else (text,)
    return len(pair) in (1, 2) and all(isinstance(each, str) for each in pair)


def _from_memory(key: str, make: Callable[[], Tokens]) -> Tokens:
    if key not in _memory:
        _memory[key] = make()
    _memory.move_to_end(key)
    while len(_memory) > _IN_MEMORY:
        _memory.popitem(last=False)
    return _memory[key]


def _folder(cache_folder: Path | str) -> Path:
    folder = Path(cache_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cache_folder={str(folder)!r} cannot be used: {error}") from error
    return folder


def _key(texts: Texts, tokenizer: Tokenizer, max_length: int) -> str:
    # The probes tell tokenizers apart that say the same of themselves: functions, edited folders.
    step = max(1, len(texts) // _PROBES)
    probes = _tokens(texts[::step][:_PROBES], tokenizer, max_length)
    digest = hashlib.sha256(json.dumps([_VERSION, max_length, _identity(tokenizer)]).encode())
    for name in sorted(probes.fields):
        digest.update(name.encode() + probes.fields[name].tobytes())
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()[:40]


def _identity(tokenizer: Tokenizer) -> list[str]:
    kind = type(tokenizer)
    return [
        f"{kind.__module__}.{kind.__qualname__}",
        str(getattr(tokenizer, "__qualname__", "")),
        str(getattr(tokenizer, "name_or_path", "")),
        str(getattr(tokenizer, "vocab_size", "")),
    ]


def _tokens(texts: Texts, tokenizer: Tokenizer, max_length: int) -> Tokens:
    keywords: dict[str, Any] = {"max_length": max_length}
    if _takes_truncation(tokenizer):
        keywords["truncation"] = True
    made = tokenizer(list(texts), **keywords)
    if not isinstance(made, Mapping) or INPUT_IDS not in made:
        got = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
        raise ValueError(f"tokenizer must return a mapping with {INPUT_IDS!r}, got {got}")
    rows = {name: _rows(name, values, len(texts)) for name, values in made.items()}
    rows = {name: [row[:max_length] for row in values] for name, values in rows.items()}
    lengths = np.array([len(row) for row in rows[INPUT_IDS]], dtype=np.int32)
    if (lengths == 0).any():
        empty = texts[int(np.argmin(lengths))]
        raise ValueError(f"texts: the tokenizer makes no token of the text {empty!r}")
    fields = {name: _flat(name, values, lengths) for name, values in rows.items()}
    fields.setdefault(ATTENTION_MASK, np.ones_like(fields[INPUT_IDS]))
    return Tokens(lengths, fields)


def _check_arrays(lengths: object, fields: object) -> None:
    named = fields if isinstance(fields, Mapping) else {"": None}
    for name, values in (("lengths", lengths), *((f"fields[{k!r}]", v) for k, v in named.items())):
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"{name} must be an array of whole numbers [N], got {values!r}")


def _takes_truncation(tokenizer: Tokenizer) -> bool:
    try:
        parameters = inspect.signature(tokenizer).parameters
    except (TypeError, ValueError):  # some that are written in C do not tell
        return True
    keywords = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return keywords or "truncation" in parameters


def _rows(name: str, values: Any, count: int) -> list[Sequence[int]]:
    rows = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(rows) != count or not all(isinstance(row, Sequence) for row in rows):
        raise ValueError(
            f"tokenizer must return a list of ids for each of {count} texts, but {name!r} "
            f"has {len(rows)} of {type(rows[0]).__name__ if rows else 'nothing'}"
        )
    return rows


def _flat(name: str, rows: list[Sequence[int]], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    if [len(row) for row in rows] != lengths.tolist():
        raise ValueError(f"tokenizer must return as many {name!r} as {INPUT_IDS!r} for each text")
    flat = np.array([value for row in rows for value in row])
    if flat.dtype.kind not in "iu" or flat.ndim != 1:
        raise ValueError(f"tokenizer must return whole numbers, but {name!r} holds {flat.dtype}")
    return flat.astype(np.int32)


def _write(file: Path, tokens: Tokens) -> None:
    buffer = io.BytesIO()
    fields = {_FIELD + name: values for name, values in tokens.fields.items()}
    np.savez_compressed(buffer, **{_LENGTHS: tokens.lengths}, **fields)  # type: ignore[arg-type]
    try:
        write_atomically(file, buffer.getvalue())
    except OSError as error:
        raise ValueError(f"cache_folder={str(file.parent)!r} cannot be used: {error}") from error


def _read(file: Path, count: int) -> Tokens | None:
    """What the file holds; None where there is none, or it is damaged."""
    try:
        # Opened here, because np.load leaves the file open where the archive turns out broken.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], dtype=np.int32) for name in stored.files}
        fields = {name.removeprefix(_FIELD): arrays[name] for name in arrays if name != _LENGTHS}
        tokens = Tokens(arrays[_LENGTHS], fields)
    except (*_DAMAGE, AttributeError, TypeError):
        return None
    return tokens if len(tokens) == count else None
