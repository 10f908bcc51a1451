"""Streams by name: "permuted-digits", "split:my/file.npz", "domains:a.npz,b.npz", "text".

Also over folders of images, "split:birds/", and with corrupted images, "split-cifar100+noise:3".
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_mgem.arguments import as_path, instance, suggestion
from avalanche_mgem.lazy import Lazy
from avalanche_mgem.streams.places import (
    DOMAIN_SETS,
    NAMED_SOURCES,
    is_folder_source,
    locate_folder,
    select_domains,
    source_file,
)
from avalanche_mgem.streams.text.files import text_task_files
from avalanche_mgem.streams.text.tasks import chosen_tasks
from avalanche_mgem.streams.vision.corruption_names import CORRUPTIONS, take_off_corruption

if TYPE_CHECKING:
    from collections.abc import Callable

    from avalanche.benchmarks import CLScenario

DOMAINS = "domains"
TEXT = "text"

_SIZES = ("n_experiences", "train_per_experience", "test_per_experience")
_REST = ("image_size", "seed", "task_labels")
# Said here, because the modules of the functions import Avalanche; a test compares.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "permuted": (*_SIZES, *_REST),
    "rotated": (*_SIZES, "max_angle", *_REST),
    "split": (*_SIZES, "class_order", *_REST),
    "correlated": (
        *("n_experiences", "classes_per_experience", "shared_classes"),
        *("train_per_experience", "test_per_experience", "class_order"),
        *_REST,
    ),
    DOMAINS: (*_SIZES, *_REST),
    TEXT: (
        *("tasks", "tokenizer", "max_length", "train_per_task", "test_per_task", "seed"),
        *("task_labels", "shared_labels", "cache_folder", "padding_side", "hub_tasks", "form"),
    ),
}
_VISION = "avalanche_mgem.streams.vision"
STREAM_KINDS: dict[str, Callable[..., CLScenario]] = {
    "permuted": Lazy(f"{_VISION}.vision:permuted_stream", _ARGUMENTS["permuted"]),
    "rotated": Lazy(f"{_VISION}.vision:rotated_stream", _ARGUMENTS["rotated"]),
    "split": Lazy(f"{_VISION}.vision:split_stream", _ARGUMENTS["split"]),
    "correlated": Lazy(f"{_VISION}.correlated:correlated_stream", _ARGUMENTS["correlated"]),
    DOMAINS: Lazy(f"{_VISION}.domains:domains_stream", _ARGUMENTS[DOMAINS]),
}
_TEXT_STREAM = Lazy("avalanche_mgem.streams.text.stream:text_stream", _ARGUMENTS[TEXT])

_NAMES = (
    *(f"{kind}-{source}" for kind in STREAM_KINDS if kind != DOMAINS for source in NAMED_SOURCES),
    *(f"{DOMAINS}-{name}" for name in DOMAIN_SETS),
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
    check_place(name, data_root)
    if name == TEXT:
        return _text_stream(data_root, arguments)
    name, corruption = take_off_corruption(name)
    stream = _image_stream(name, data_root, download, arguments)
    if corruption is None:
        return stream
    from avalanche_mgem.streams.vision.corruptions import corrupted

    return corrupted(stream, corruption, seed=arguments.get("seed", 0))


def _image_stream(
    name: str, data_root: Path | str | None, download: bool, arguments: dict[str, Any]
) -> CLScenario:
    from avalanche_mgem.streams.arrays import load_data
    from avalanche_mgem.streams.vision.domains import load_domains
    from avalanche_mgem.streams.vision.image_folders import load_image_folder

    kind, source = parse_stream_name(name)
    build = STREAM_KINDS[kind]
    check_arguments(kind, arguments)
    if kind == DOMAINS:
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
    check_place(name, data_root)
    if name == TEXT:
        named = [] if data_root is None or tasks is None else chosen_tasks(tasks)
        names = [each for each in named if isinstance(each, str)]
        return [path for each in names for path in text_task_files(data_root or "", each)]
    kind, source = parse_stream_name(name)
    files = []
    for each in select_domains(source, domains) if kind == DOMAINS else (source,):
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
    check_place(name, data_root)
    if name == TEXT:
        return None
    kind, source = parse_stream_name(name)
    is_folder = kind != DOMAINS and is_folder_source(source)
    return locate_folder(source, data_root) if is_folder else None


def check_place(name: object, data_root: Path | str | None) -> None:
    """Raise ValueError for what is no text, or no path."""
    instance("name", name, str, what="the name of a stream")
    as_path("name", name)
    if data_root is not None:
        as_path("data_root", data_root)


def _unknown(name: str) -> str:
    near = " or ".join(map(repr, get_close_matches(name.replace(":", "-"), _NAMES)))
    hint = f"did you mean {near}? " if near else ""
    kinds = ", ".join(kind for kind in STREAM_KINDS if kind != DOMAINS)
    sets = ", ".join(f"{DOMAINS}-{each}" for each in DOMAIN_SETS)
    files = f"{DOMAINS}:FILE.npz,FILE.npz"
    corruptions = ", ".join(CORRUPTIONS)
    return (
        f"stream={name!r} is unknown; {hint}known: KIND-SOURCE, KIND:FILE.npz or KIND:FOLDER/, "
        f"with a KIND of {kinds} and a SOURCE of {', '.join(NAMED_SOURCES)}; {sets}; {files}; "
        f"{TEXT}; and of images NAME+CORRUPTION, one or several of {corruptions}, such as +noise:3"
    )


def _text_stream(data_root: Path | str | None, arguments: dict[str, Any]) -> CLScenario:
    check_text_arguments(arguments)
    stream: CLScenario = _TEXT_STREAM(folder=data_root, **arguments)
    return stream


def check_text_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError for arguments that no stream of text takes, and for those that it needs."""
    known = _ARGUMENTS[TEXT]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{name} is no argument of text streams; {suggestion(name, known)}")
    if "tasks" not in arguments or "tokenizer" not in arguments:
        raise ValueError(f"text streams need tasks and tokenizer, got {', '.join(arguments)}")


def _is_source(kind: str, source: str) -> bool:
    if kind == DOMAINS:
        return source in DOMAIN_SETS or all(map(_is_data, source.split(",")))
    return _is_data(source) or is_folder_source(source)


def _is_data(source: str) -> bool:
    return source in NAMED_SOURCES or (source.endswith(".npz") and source != ".npz")


def check_arguments(kind: str, arguments: dict[str, Any]) -> None:
    """Raise ValueError for arguments that no stream of this kind takes, or without its length."""
    known = (*_ARGUMENTS[kind], *([DOMAINS] if kind == DOMAINS else []))
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r} is no argument of {kind} streams; {suggestion(name, known)}"
            )
    if kind != DOMAINS and "n_experiences" not in arguments:
        given = ", ".join(arguments) or "none"
        raise ValueError(f"{kind} streams need n_experiences, got {given}")
