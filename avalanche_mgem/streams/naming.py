"""Streams by name: "permuted-digits", "rotated-mnist", "split:my/file.npz"."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario

from avalanche_mgem.arguments import suggestion
from avalanche_mgem.streams.arrays import NAMED_SOURCES, load_data
from avalanche_mgem.streams.vision import permuted_stream, rotated_stream, split_stream

STREAM_KINDS: dict[str, Callable[..., CLScenario]] = {
    "permuted": permuted_stream,
    "rotated": rotated_stream,
    "split": split_stream,
}

_NAMES = tuple(f"{kind}-{source}" for kind in STREAM_KINDS for source in NAMED_SOURCES)


def parse_stream_name(name: str) -> tuple[str, str]:
    """Take a stream's name apart into kind and source, with "-" or ":" between them.

    "permuted-digits" is ("permuted", "digits"), "split:my/file.npz" is ("split", "my/file.npz").
    The file need not exist. Raises ValueError, with the nearest names, for any other.
    """
    for kind in STREAM_KINDS:
        separator, source = name[len(kind) : len(kind) + 1], name[len(kind) + 1 :]
        if name.startswith(kind) and separator in ("-", ":") and _is_source(source):
            return kind, source
    raise ValueError(
        f"stream={name!r} is unknown; {suggestion(name.replace(':', '-'), _NAMES)}, or "
        f"KIND:FILE.npz with a KIND of {', '.join(STREAM_KINDS)}"
    )


def make_stream(
    name: str, *, data_root: Path | str | None = None, download: bool = True, **arguments: Any
) -> CLScenario:
    """Build the stream called `name`.

    data_root, download: where the data is found, see `load_data`. arguments: those of the kind's
    function (`permuted_stream`, `rotated_stream`, `split_stream`), n_experiences at least. Raises
    ValueError for unknown names and arguments, before loading, and where those functions do.
    """
    kind, source = parse_stream_name(name)
    build = STREAM_KINDS[kind]
    _check_arguments(kind, build, arguments)
    return build(load_data(source, data_root=data_root, download=download), **arguments)


def _is_source(source: str) -> bool:
    return source in NAMED_SOURCES or (source.endswith(".npz") and source != ".npz")


def _check_arguments(
    kind: str, build: Callable[..., CLScenario], arguments: dict[str, Any]
) -> None:
    parameters = inspect.signature(build).parameters.values()
    known = tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r} is no argument of {kind} streams; {suggestion(name, known)}"
            )
    if "n_experiences" not in arguments:
        raise ValueError(f"{kind} streams need n_experiences, got {', '.join(arguments) or 'none'}")
