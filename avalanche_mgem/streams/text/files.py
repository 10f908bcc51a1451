"""Reading text tasks from a folder: NAME/{train,test}.jsonl[.gz] and NAME/labels.json."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import as_path, suggestion
from avalanche_mgem.streams.text.tasks import TextSample, TextTask

LABELS = "labels.json"

# gzip raises EOFError for a file cut short, zlib.error or OSError for other damage.
_BROKEN = (OSError, EOFError, zlib.error)


def read_text_task(folder: Path | str, name: str) -> TextTask:
    """Read the task FOLDER/NAME.

    labels.json is a list of the label words, or {"labels": that list, "prompt": what is asked of a
    text}. Each line of train.jsonl and test.jsonl (or of train.jsonl.gz, test.jsonl.gz; UTF-8) is
    an object with "text", a string, with "label", a position in the list of words or one of them,
    and for a pair of texts "text_pair", a string. Other keys and blank lines are ignored.

    Raises ValueError: for a task that is not there, with the nearest names, and for content that
    does not fit, with file and line.
    """
    path = _task_folder(folder, name)
    words, prompt = _read_labels(path / LABELS)
    train, test = (list(_samples(_part(path, part), words)) for part in ("train", "test"))
    try:
        return TextTask(name, words, train, test, prompt)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def text_tasks_in(folder: Path | str) -> tuple[str, ...]:
    """The names of the tasks that lie in a folder, sorted: of its folders with a labels.json."""
    return tuple(sorted(path.parent.name for path in as_path("folder", folder).glob(f"*/{LABELS}")))


def text_task_files(folder: Path | str, name: str) -> list[Path]:
    """Return the files that decide the task FOLDER/NAME, as `read_text_task` reads them.

    Raises ValueError where one is not there.
    """
    path = _task_folder(folder, name)
    return [path / LABELS, _part(path, "train"), _part(path, "test")]


def _task_folder(folder: Path | str, name: str) -> Path:
    """Return FOLDER/NAME, where it has labels."""
    path = as_path("folder", folder) / as_path("name or tasks", name)
    if not (path / LABELS).is_file():
        raise ValueError(_no_task(Path(folder), name))
    return path


def _no_task(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"folder={str(folder)!r} does not exist; it should hold {name}/{LABELS}"
    known = text_tasks_in(folder)
    if (folder / name).is_dir():
        return f"task {name!r} has no file {folder / name / LABELS}: a list of its label words"
    hint = suggestion(str(name), known) if known else f"it has no folder with a {LABELS}"
    return f"folder={str(folder)!r} has no task {name!r}; {hint}"


def _part(path: Path, part: str) -> Path:
    both = [path / f"{part}.jsonl", path / f"{part}.jsonl.gz"]
    found = [file for file in both if file.is_file()]
    if not found:
        raise ValueError(f"task {path.name!r} has neither {both[0]} nor {both[1]}")
    if len(found) > 1:
        raise ValueError(f"task {path.name!r} has both {both[0]} and {both[1]}; remove one")
    return found[0]


def _read_labels(file: Path) -> tuple[tuple[str, ...], str | None]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    words, prompt = content, None
    if isinstance(content, dict):
        words, prompt = content.get("labels"), content.get("prompt")
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{file} must be a list of label words, or have one as 'labels'")
    if not isinstance(prompt, str | None):
        raise ValueError(f"{file}: 'prompt' must be text, got {prompt!r}")
    if len(words) < 2 or len(set(words)) < len(words):
        raise ValueError(f"{file} must have two or more label words, all different, got {words}")
    return tuple(words), prompt


def _samples(file: Path, words: tuple[str, ...]) -> Iterator[TextSample]:
    first: TextSample | None = None
    for number, line in _lines(file):
        try:
            sample = _sample(json.loads(line), words)
            if first is not None and (first.text_pair is None) != (sample.text_pair is None):
                raise ValueError("some lines have 'text_pair' and some have not")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: {_reason(error)}") from error
        first = first or sample
        yield sample
    if first is None:
        raise ValueError(f"{file} is empty")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    # As bytes, which end at line feeds only: JSON may hold other line separators within strings.
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except _BROKEN as error:
        raise ValueError(f"{file} cannot be read to its end: {error}") from error


def _sample(line: Any, words: tuple[str, ...]) -> TextSample:
    if not isinstance(line, dict):
        raise ValueError(f"needs an object with 'text' and 'label', got {type(line).__name__}")
    for key in ("text", "label"):
        if key not in line:
            raise ValueError(f"has no {key!r}, but {', '.join(map(repr, line)) or 'nothing'}")
    text, pair = line["text"], line.get("text_pair")
    if not isinstance(text, str):
        raise ValueError(f"'text' must be a string, got {text!r}")
    if not isinstance(pair, str | None):
        raise ValueError(f"'text_pair' must be a string, got {pair!r}")
    return TextSample(text, _label(line["label"], words), pair)


def _label(label: Any, words: tuple[str, ...]) -> int:
    if isinstance(label, str) and label in words:
        return words.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(words):
        return label
    raise ValueError(
        f"label {label!r} is neither one of 0..{len(words) - 1} nor a word of {LABELS}; "
        f"{suggestion(str(label), words)}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    return str(error)
