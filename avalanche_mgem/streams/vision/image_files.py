"""Which files below a folder are images of which class and part; nothing is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

Files = Sequence[tuple[Path, int]]  # images and their classes

_LEFT_BY_SYSTEMS = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found"})

_ROLES = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "held out"),
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), "held out"),
}
_FILLERS = "set|sets|data|dataset|image|images|img|imgs|split|part|samples|folder"
_PART_WORD = re.compile(rf"({'|'.join(_ROLES)})({_FILLERS})?")
_FILLER_WORD = re.compile(_FILLERS)
_WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")


@dataclass(frozen=True)
class ClassFolders:
    """A folder with one folder a class: their names, sorted, and the images of all in order."""

    folder: Path
    classes: list[str]
    files: Files


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder, in the order of torchvision's ImageFolder; links followed.

    Without those that are hidden or in a hidden folder: names that begin with a dot, such as
    .ipynb_checkpoints and macOS's ._*, and the folders that systems leave, such as __MACOSX.
    """
    found = []
    for at, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found.append((at, names))
    return [
        Path(at) / name
        for at, names in sorted(found)
        for name in sorted(names)
        if not _is_hidden(name) and name.lower().endswith(IMG_EXTENSIONS)
    ]


def class_folders(folder: Path) -> ClassFolders:
    """Return the classes of a folder and their images; raises ValueError where there are none."""
    classes = _folders(folder)
    if not classes:
        raise ValueError(f"{folder} must have one folder a class, each with images; it has none")
    found = [image_files(folder / name) for name in classes]
    empty = [name for name, files in zip(classes, found, strict=True) if not files]
    if empty:
        raise ValueError(
            f"{folder} must have one folder a class, each with images: found none for the classes "
            f"{', '.join(empty[:10])}; images end in {', '.join(IMG_EXTENSIONS)}"
        )
    files = [(path, label) for label, paths in enumerate(found) for path in paths]
    return ClassFolders(folder, classes, files)


def part_folders(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of the training and of the test images; None: root has classes instead.

    Parts are told by their names, in any case: train, Training, train_set, train2017; test,
    testing; where none of the last is there, one of val, validation, dev, eval and the like; also
    with a word in common, seg_train and seg_test. Folders without images do not count.

    Raises ValueError for one part alone, for two of a kind, and for parts beside other folders.
    """
    names = [name for name in _folders(root) if image_files(root / name)]
    parts = {name: role for name in names if (role := _role(name))}
    common = _common_words(parts.values())
    if common is None:
        alone = [name for name, (_, words) in parts.items() if not words]
        if alone:
            raise ValueError(_incomplete(root, alone, names))
        _check_below(root, names)
        return None
    others = [name for name in names if name not in parts or parts[name][1] != common]
    if others:
        raise ValueError(_beside(root, [name for name in names if name not in others], others))
    by_role = {role: [n for n in names if parts[n][0] == role] for role in set(_ROLES.values())}
    train, test = by_role["train"], by_role["test"] or by_role["held out"]
    if len(train) > 1 or len(test) > 1:
        raise ValueError(
            f"{root} must have one folder of training and one of test images, got "
            f"{', '.join(train)} and {', '.join(test)}"
        )
    return root / train[0], root / test[0]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def _folders(root: Path) -> list[str]:
    return sorted(
        each.name for each in root.iterdir() if each.is_dir() and not _is_hidden(each.name)
    )


def _role(name: str) -> tuple[str, tuple[str, ...]] | None:
    """What part a folder's name tells, and what other words are in it; None for any other name."""
    words = [word.lower() for word in _WORD.findall(name)]
    found = [match for word in words if (match := _PART_WORD.fullmatch(word))]
    if len(found) != 1:
        return None
    rest = [w for w in words if w != found[0].group() and not _FILLER_WORD.fullmatch(w)]
    return _ROLES[found[0].group(1)], tuple(rest)


def _common_words(roles: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[str, ...] | None:
    """Return the words with which there are a training part and another; None: there is no pair."""
    by_words: dict[tuple[str, ...], set[str]] = {}
    for role, words in roles:
        by_words.setdefault(words, set()).add(role)
    pairs = [words for words, found in by_words.items() if "train" in found and len(found) > 1]
    return min(pairs, default=None)  # the empty one, if there are several


def _check_below(root: Path, names: Sequence[str]) -> None:
    """Raise ValueError where the parts lie below the classes, or the folder below this one."""
    for name in names:
        below = (_role(each) for each in _folders(root / name))
        if _common_words(role for role in below if role) is not None:
            raise ValueError(
                f"{root / name} has folders for training and test: give that one, or put these "
                "above the folders of the classes"
            )


def _incomplete(root: Path, parts: Sequence[str], names: Sequence[str]) -> str:
    others = [name for name in names if name not in parts]
    if others:
        return _beside(root, parts, others)
    return (
        f"{root} must have both 'train' and 'test', or one folder a class, got {', '.join(parts)}"
    )


def _beside(root: Path, parts: Sequence[str], others: Sequence[str]) -> str:
    more = ", ..." if len(others) > 5 else ""
    return (
        f"{root} must have 'train' and 'test' alone, or one folder a class: {', '.join(parts)} "
        f"can be no class beside {', '.join(others[:5])}{more}; move one or the other, or rename "
        "it if it is a class"
    )
