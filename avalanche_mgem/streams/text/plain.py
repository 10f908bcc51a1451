"""Streams of plain texts, domain after domain: for continual pre-training."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_mgem.arguments import as_list, as_path, flag, positive_int, suggestion
from avalanche_mgem.streams.drawing import Draw, draw_balanced
from avalanche_mgem.streams.scenario import make_scenario
from avalanche_mgem.streams.text.batches import Side, TokenSamples, padding_of
from avalanche_mgem.streams.text.tokens import Tokenizer, check_tokenizing, tokenized

Domains = Mapping[str, tuple[Sequence[str], Sequence[str]]]

_ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
_PARTS = {"train": Draw.TRAIN, "test": Draw.TEST}


def plain_text_stream(
    domains: Domains | Path | str,
    *,
    tokenizer: Tokenizer,
    names: Sequence[str] | None = None,
    max_length: int = 128,
    train_per_domain: int | None = None,
    test_per_domain: int | None = None,
    seed: int = 0,
    task_labels: bool = True,
    cache_folder: Path | str | None = None,
    padding_side: Side | None = None,
) -> CLScenario:
    """A stream with a training and a test experience for each domain; all labels are 0.

    domains: the training and the test texts of each, by its name, or a folder with
    NAME/train.txt and NAME/test.txt (a text a line) or train.jsonl and test.jsonl (an object a line
    with the text as "text"), each of them perhaps compressed (.gz). names: which domains, and in
    what order; None: all, in the order of the mapping, those of a folder sorted.

    train_per_domain, test_per_domain, seed: at most so many texts, drawn without touching the
    global random state; None: all, in their order. task_labels: experience i has the task label i
    instead of 0. tokenizer, max_length, cache_folder: see `tokenized`; longer texts are cut.
    padding_side, and what samples, batches and test sets are: see `text_stream`. An experience has
    its `task_name`.

    Raises ValueError for domains that are not there, with the nearest names, for a part without a
    text and for a line that is none, with its file, and where `tokenized` does.
    """
    check_tokenizing(tokenizer, max_length, cache_folder)
    flag("task_labels", task_labels)
    positive_int("seed", seed, minimum=0)
    parts = _read(domains, names)
    collate = padding_of(tokenizer, side=padding_side)
    sizes = {"train": train_per_domain, "test": test_per_domain}

    def samples(part: str) -> list[Any]:
        made = []
        for name, texts in parts.items():
            drawn = _drawn(texts[part], part, sizes[part], seed, name)
            tokens = tokenized(drawn, tokenizer, max_length=max_length, cache_folder=cache_folder)
            made.append(TokenSamples(tokens, [0] * len(drawn), collate, by_length=part == "test"))
        return made

    scenario = make_scenario(samples("train"), samples("test"), task_labels)
    for stream in scenario.streams.values():
        for experience, name in zip(stream, parts, strict=True):
            experience.task_name = name
    return scenario


def _read(
    domains: Domains | Path | str, names: Sequence[str] | None
) -> dict[str, dict[str, Sequence[str]]]:
    folder = None if isinstance(domains, Mapping) else as_path("domains", domains)
    if isinstance(domains, Mapping):
        known = list(domains)
    else:
        found = {
            file.parent.name for end in _ENDINGS for file in Path(domains).glob(f"*/train{end}")
        }
        known = sorted(found)
    if not known:
        raise ValueError(
            f"domains must be one or more, got none in {str(folder) if folder else domains!r}; a "
            "folder should have NAME/train.txt and NAME/test.txt"
        )
    chosen = known if names is None else as_list("names", names, str, what="names of domains")
    for name in chosen:
        if name not in known:
            raise ValueError(f"names: unknown domain {name!r}; {suggestion(str(name), known)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"names must be one or more different domains, got {chosen}")
    if isinstance(domains, Mapping):
        return {name: _checked(name, domains[name]) for name in chosen}
    return {name: _checked(name, _from_folder(Path(domains) / name)) for name in chosen}


def _checked(name: str, texts: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    two = isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) == len(_PARTS)
    if not two or not all(map(_are_texts, texts)):
        raise ValueError(
            f"domains: {name!r} must be (training texts, test texts), each a list of texts"
        )
    for part, own in zip(_PARTS, texts, strict=True):
        if not own:
            raise ValueError(f"domain {name!r} has no {part} texts")
    return dict(zip(_PARTS, texts, strict=True))


def _are_texts(texts: object) -> bool:
    listed = isinstance(texts, Sequence) and not isinstance(texts, str)
    return listed and all(isinstance(text, str) for text in texts)  # type: ignore[attr-defined]


def _from_folder(folder: Path) -> tuple[Sequence[str], Sequence[str]]:
    train, test = (list(_texts(_file(folder, part))) for part in _PARTS)
    return train, test


def _file(folder: Path, part: str) -> Path:
    found = [folder / f"{part}{end}" for end in _ENDINGS if (folder / f"{part}{end}").is_file()]
    if len(found) != 1:
        got = " and ".join(file.name for file in found) or "none"
        raise ValueError(
            f"domain {folder.name!r} must have one of {part}{{{','.join(_ENDINGS)}}} in {folder}, "
            f"got {got}"
        )
    return found[0]


def _texts(file: Path) -> Iterator[str]:
    """The texts of a file, without blank lines."""
    as_objects = ".jsonl" in file.name
    # As bytes, which end at line feeds only: JSON may hold other line separators within strings.
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text(line, as_objects, f"{file}, line {number}")
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} cannot be read to its end: {error}") from error


def _text(line: bytes, as_object: bool, where: str) -> str:
    try:
        text: Any = json.loads(line)["text"] if as_object else line.decode().strip()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = "an object with 'text'" if as_object else "UTF-8"
        raise ValueError(f"{where}: must be {wanted}: {error}") from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: 'text' must be a string that is not blank, got {text!r}")
    return text


def _drawn(
    texts: Sequence[str], part: str, count: int | None, seed: int, name: str
) -> Sequence[str]:
    if count is None:
        return texts
    at_most = min(positive_int(f"{part}_per_domain", count), len(texts))
    labels = np.zeros(len(texts), dtype=np.int64)
    rows = draw_balanced(labels, _PARTS[part], at_most, seed, zlib.crc32(name.encode()))
    return [texts[int(row)] for row in rows]
