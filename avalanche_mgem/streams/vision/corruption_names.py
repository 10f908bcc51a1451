"""Corruptions by name and level: "noise:3,blur", and the end of "split-cifar100+noise:3"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from avalanche_mgem.arguments import as_list, finite, one_of

CORRUPTIONS = ("noise", "blur", "contrast", "none")
"""What `corrupted` can do to images."""

HIGHEST_LEVEL = 5.0
_WORDS = r"[a-z]+(:[^:,+/]*)?"
_SUFFIX = re.compile(rf"{_WORDS}(,{_WORDS})*")


@dataclass(frozen=True)
class Corruption:
    """One of CORRUPTIONS and how strong it is; written "noise:3", or "noise" for the level 3.

    Images are float32 in [0, 1], levels from 0 (nothing changes) to 5, whole or not. What a level
    means is our own choice: "noise" adds Gaussian noise of standard deviation 0.06 * level, drawn
    for every value on its own; "blur" is a Gaussian blur with a standard deviation of 0.4 * level
    pixels; "contrast" scales the distance to the image's mean by 1 - 0.16 * level; "none" changes
    nothing. Values are cut off at 0 and 1, and `corrupted` rounds them to whole 255ths, those of
    "none" and level 0 too. Raises ValueError for another kind or level.
    """

    kind: str
    level: float = 3.0

    def __post_init__(self) -> None:
        one_of("corruption", self.kind, CORRUPTIONS)
        if finite(f"level of {self.kind}", self.level, minimum=0.0) > HIGHEST_LEVEL:
            raise ValueError(
                f"level of {self.kind} must be at most {HIGHEST_LEVEL:g}, got {self.level}"
            )


def parse_corruptions(corruption: str | Sequence[str]) -> tuple[Corruption, ...]:
    """Read "noise:3,blur", or such a list: which corruptions, at which levels.

    Raises ValueError for none, and where `Corruption` does.
    """
    what = f"a text such as 'noise:3', or a list of {', '.join(CORRUPTIONS)}"
    if isinstance(corruption, str):
        named = corruption.split(",")
    else:
        named = as_list("corruption", corruption, str, what=what)
    if not named:
        raise ValueError(f"corruption must name at least one of {', '.join(CORRUPTIONS)}, got none")
    return tuple(_parsed(each) for each in named)


def take_off_corruption(name: str) -> tuple[str, str | None]:
    """Take "split-cifar100+noise:3" apart: the stream's name, and its corruption or None.

    A "+" in a file's name is left there. Raises ValueError for unknown corruptions and levels.
    """
    base, plus, text = name.rpartition("+")
    if not plus or not _SUFFIX.fullmatch(text):
        return name, None
    parse_corruptions(text)
    return base, text


def _parsed(text: str) -> Corruption:
    kind, colon, level = text.strip().partition(":")
    one_of("corruption", kind, CORRUPTIONS)
    return Corruption(kind, _number(kind, level)) if colon else Corruption(kind)


def _number(kind: str, level: str) -> float:
    try:
        return float(level)
    except ValueError as error:
        raise ValueError(
            f"level of {kind} must be a number from 0 to {HIGHEST_LEVEL:g}, got {level!r}"
        ) from error
