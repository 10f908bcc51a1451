"""Streams by name: "permuted-digits", "split:my/file.npz", "domains:a.npz,b.npz", "text".

Also over folders of images, "split:birds/", and with corrupted images, "split-cifar100+noise:3".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario

from avalanche_mgem.arguments import as_path, instance, suggestion
from avalanche_mgem.streams.arrays import NAMED_SOURCES, load_data, source_file
from avalanche_mgem.streams.text import text_stream, text_task_files
from avalanche_mgem.streams.text.tasks import chosen_tasks
from avalanche_mgem.streams.vision.correlated import correlated_stream
from avalanche_mgem.streams.vision.corruptions import CORRUPTIONS, corrupted, take_off_corruption
from avalanche_mgem.streams.vision.domains import (
    DOMAIN_SETS,
    domains_stream,
    load_domains,
    select_domains,
)
from avalanche_mgem.streams.vision.image_folders import (
    is_folder_source,
    load_image_folder,
    locate_folder,
)
from avalanche_mgem.streams.vision.vision import permuted_stream, rotated_stream, split_stream

STREAM_KINDS: dict[str, Callable[..., CLScenario]] = {
    "permuted": permuted_stream,
    "rotated": rotated_stream,
    "split": split_stream,
    "correlated": correlated_stream,
    "domains": domains_stream,
}
_DOMAINS = "domains"
TEXT = "text"

_NAMES = (
    *(f"{kind}-{source}" for kind in STREAM_KINDS if kind != _DOMAINS for source in NAMED_SOURCES),
    *(f"{_DOMAINS}-{name}" for name in DOMAIN_SETS),
    TEXT,
)


def parse_stream_name(name: str) -> tuple[str, str]:
    """Take a stream's name apart into kind and source, with "-" or ":" between them.

    "permuted-digits" is ("permuted", "digits"), "split:my/file.npz" is ("split", "my/file.npz"),
    "domains:a.npz,b.npz" is ("domains", "a.npz,b.npz"), "split:birds/" is ("split", "birds/"). A
    corruption, as in "split-cifar100+noise", is left out. Files need not exist. Raises ValueError,
    with the nearest names, for any other.
    """
    instance("name", name, str, what="the name of a stream")
    name, _ = take_off_corruption(name)
    for kind in STREAM_KINDS:
        separator, source = name[len(kind) : len(kind) + 1], name[len(kind) + 1 :]
        if name.startswith(kind) and separator in ("-", ":") and _is_source(kind, source):
            return kind, source
    raise ValueError(_unknown(name))


def make_stream(
    name: str, *, data_root: Path | str | None = None, download: bool = True, **arguments: Any
) -> CLScenario:
    """Build the stream called `name`.

    data_root, download: where the data is found, see `load_data`. arguments: those of the kind's
    function (`split_stream` for "split" and so on), n_experiences at least, where the domains do
    not tell it. Streams of domains take domains=("mnist", "usps") besides, or "mnist,usps": which
    of them, in which order. Pixels are kept as uint8. A folder of images, a source with a slash, is
    read at image_size, or 64, see `load_image_folder`; what follows a "+" is done to the images by
    `corrupted`, with the stream's seed. The stream "text" has the arguments of `text_stream`, of
    which tasks and tokenizer are needed; data_root is the folder of the tasks, and without one they
    are read from the hub.

    Raises ValueError for unknown names and arguments, before loading, and where those functions do.
    """
    _check_place(name, data_root)
    if name == TEXT:
        return _text_stream(data_root, arguments)
    name, corruption = take_off_corruption(name)
    stream = _image_stream(name, data_root, download, arguments)
    if corruption is None:
        return stream
    return corrupted(stream, corruption, seed=arguments.get("seed", 0))


def _image_stream(
    name: str, data_root: Path | str | None, download: bool, arguments: dict[str, Any]
) -> CLScenario:
    kind, source = parse_stream_name(name)
    build = STREAM_KINDS[kind]
    _check_arguments(kind, build, arguments)
    if kind == _DOMAINS:
        sources = select_domains(source, arguments.pop("domains", None))
        return build(load_domains(sources, data_root=data_root, download=download), **arguments)
    if is_folder_source(source):
        image_size = arguments.get("image_size")
        data = load_image_folder(
            locate_folder(source, data_root), 64 if image_size is None else image_size
        )
    else:
        data = load_data(source, data_root=data_root, download=download, keep_uint8=True)
    return build(data, **arguments)


def stream_files(
    name: str, *, data_root: Path | str | None = None, domains: Any = None, tasks: Any = None
) -> list[Path]:
    """Return the .npz files, of those that exist, whose contents decide the stream called `name`.

    data_root, domains, tasks: as given to `make_stream`. Of text, these are the files of the tasks.
    What is read in torchvision's layout is the same everywhere, and not listed. Raises ValueError
    for unknown names.
    """
    _check_place(name, data_root)
    if name == TEXT:
        named = [] if data_root is None or tasks is None else chosen_tasks(tasks)
        names = [each for each in named if isinstance(each, str)]
        return [path for each in names for path in text_task_files(data_root or "", each)]
    kind, source = parse_stream_name(name)
    files = []
    for each in select_domains(source, domains) if kind == _DOMAINS else (source,):
        try:
            path = source_file(each, data_root)
        except ValueError:  # it is nowhere; whoever builds the stream says so
            continue
        files += [path] if path is not None and path.is_file() else []
    return files


def stream_folder(name: str, *, data_root: Path | str | None = None) -> Path | None:
    """Return the folder of images that the stream called `name` is read from, if it is one.

    Raises ValueError for unknown names, and for a folder that is not there.
    """
    _check_place(name, data_root)
    if name == TEXT:
        return None
    kind, source = parse_stream_name(name)
    is_folder = kind != _DOMAINS and is_folder_source(source)
    return locate_folder(source, data_root) if is_folder else None


def _check_place(name: object, data_root: Path | str | None) -> None:
    instance("name", name, str, what="the name of a stream")
    as_path("name", name)
    if data_root is not None:
        as_path("data_root", data_root)


def _unknown(name: str) -> str:
    near = " or ".join(map(repr, get_close_matches(name.replace(":", "-"), _NAMES)))
    hint = f"did you mean {near}? " if near else ""
    kinds = ", ".join(kind for kind in STREAM_KINDS if kind != _DOMAINS)
    sets = ", ".join(f"{_DOMAINS}-{each}" for each in DOMAIN_SETS)
    files = f"{_DOMAINS}:FILE.npz,FILE.npz"
    corruptions = ", ".join(CORRUPTIONS)
    return (
        f"stream={name!r} is unknown; {hint}known: KIND-SOURCE, KIND:FILE.npz or KIND:FOLDER/, "
        f"with a KIND of {kinds} and a SOURCE of {', '.join(NAMED_SOURCES)}; {sets}; {files}; "
        f"{TEXT}; and of images NAME+CORRUPTION, one or several of {corruptions}, such as +noise:3"
    )


def _text_stream(data_root: Path | str | None, arguments: dict[str, Any]) -> CLScenario:
    known = [name for name in inspect.signature(text_stream).parameters if name != "folder"]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{name} is no argument of text streams; {suggestion(name, known)}")
    if "tasks" not in arguments or "tokenizer" not in arguments:
        raise ValueError(f"text streams need tasks and tokenizer, got {', '.join(arguments)}")
    return text_stream(folder=data_root, **arguments)


def _is_source(kind: str, source: str) -> bool:
    if kind == _DOMAINS:
        return source in DOMAIN_SETS or all(map(_is_data, source.split(",")))
    return _is_data(source) or is_folder_source(source)


def _is_data(source: str) -> bool:
    return source in NAMED_SOURCES or (source.endswith(".npz") and source != ".npz")


def _check_arguments(
    kind: str, build: Callable[..., CLScenario], arguments: dict[str, Any]
) -> None:
    parameters = inspect.signature(build).parameters.values()
    keyword = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    known = [each.name for each in keyword] + ([_DOMAINS] if kind == _DOMAINS else [])
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r} is no argument of {kind} streams; {suggestion(name, known)}"
            )
    needed = [each.name for each in keyword if each.default is each.empty]
    if any(name not in arguments for name in needed):
        given = ", ".join(arguments) or "none"
        raise ValueError(f"{kind} streams need {', '.join(needed)}, got {given}")
