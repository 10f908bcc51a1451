"""What is wrong with a stream by name, as far as its data need not be read for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import bounded_int, finite
from avalanche_mgem.streams.drawing import check_sizes
from avalanche_mgem.streams.naming import (
    DOMAINS,
    TEXT,
    check_arguments,
    check_place,
    check_text_arguments,
    parse_stream_name,
)
from avalanche_mgem.streams.places import (
    is_folder_source,
    locate_folder,
    n_classes_of,
    n_domains,
    require_source,
    require_sources,
    select_domains,
)
from avalanche_mgem.streams.text.tasks import chosen_tasks
from avalanche_mgem.streams.vision.class_groups import (
    check_share,
    class_numbers,
    correlated_groups,
    split_groups,
)

_DEALS: dict[str, Callable[..., object]] = {"split": split_groups, "correlated": correlated_groups}


def check_stream(
    name: str, *, data_root: Path | str | None = None, download: bool = True, **arguments: Any
) -> int:
    """Raise what `make_stream` with these arguments raises before it reads data.

    Unknown names and arguments, sizes out of range, data that are not there. Imports neither
    Avalanche nor torch. Returns the number of experiences.
    """
    check_place(name, data_root)
    if name == TEXT:
        check_text_arguments(arguments)
        return len(chosen_tasks(arguments["tasks"]))
    kind, source = parse_stream_name(name)
    check_arguments(kind, arguments)
    if kind == DOMAINS:
        domains = select_domains(source, arguments.get("domains"))
        length = n_domains(len(domains), arguments.get("n_experiences"))
    else:
        length = arguments["n_experiences"]
    _check_values(length, arguments)
    if kind == DOMAINS:
        require_sources(domains, data_root, download)
    elif is_folder_source(source):
        locate_folder(source, data_root)
    else:
        require_source(source, data_root, download)
        _check_classes(kind, source, data_root, length, arguments)
    return length


def _check_values(length: int, arguments: dict[str, Any]) -> None:
    check_sizes(
        length,
        arguments.get("train_per_experience"),
        arguments.get("test_per_experience"),
        arguments.get("seed", 0),
        arguments.get("task_labels", False),
    )
    if arguments.get("image_size") is not None:
        bounded_int("image_size", arguments["image_size"])
    if "max_angle" in arguments:
        finite("max_angle", arguments["max_angle"], minimum=0.0, above=True)
    if "shared_classes" in arguments:
        check_share(arguments["shared_classes"])
    if isinstance(arguments.get("class_order"), str):
        class_numbers(arguments["class_order"])
    if arguments.get("classes_per_experience") is not None:
        bounded_int("classes_per_experience", arguments["classes_per_experience"])


def _check_classes(
    kind: str, source: str, data_root: Path | str | None, length: int, arguments: dict[str, Any]
) -> None:
    """Deal out the classes, where the source is known to have so many."""
    n_classes = n_classes_of(source, data_root)
    if n_classes is not None and kind in _DEALS:
        names = ("class_order", "classes_per_experience", "shared_classes", "seed")
        given = {name: arguments[name] for name in names if name in arguments}
        _DEALS[kind](n_classes, source, length, **given)
