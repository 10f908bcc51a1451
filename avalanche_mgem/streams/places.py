"""Where data lies: the sources that have a name, .npz files, folders of images.

Nothing here reads data, so that what is not there is said before anything is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from avalanche_mgem.arguments import as_list, as_path, bounded_int, flag, instance, one_of

KEYS = ("x_train", "y_train", "x_test", "y_test")
"""What an .npz file of data holds."""
DEFAULT_ROOT = Path("data")
LEAST_AUGMENTED = 16
"""Height and width of the smallest images that are cropped and flipped."""

_IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class Layout:
    """How torchvision keeps a data set: the class's name, and its files in a folder of the root."""

    dataset: str
    folder: str
    files: tuple[str, ...]
    parts: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
    channels_last: bool = False
    n_classes: int = 10

    def missing(self, root: Path) -> Path | None:
        """Return the first file that is not there."""
        paths = [root / self.folder / name for name in self.files]
        return next((path for path in paths if not path.is_file()), None)


LAYOUTS: dict[str, Layout | None] = {
    "mnist": Layout("MNIST", "MNIST/raw", _IDX_FILES),
    "fashion-mnist": Layout("FashionMNIST", "FashionMNIST/raw", _IDX_FILES),
    "cifar10": Layout(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        channels_last=True,
    ),
    "cifar100": Layout(
        *("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
        channels_last=True,
        n_classes=100,
    ),
    "svhn": Layout(
        "SVHN",
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        ({"split": "train"}, {"split": "test"}),
    ),
    "usps": Layout("USPS", "", ("usps.bz2", "usps.t.bz2")),
    "mnist_m": None,  # torchvision has none
    "synthetic_digits": None,
}
FILE_SOURCES = tuple(LAYOUTS)
NAMED_SOURCES = ("digits", *FILE_SOURCES)
DOMAIN_SETS = {"digit-five": ("mnist", "mnist_m", "svhn", "usps", "synthetic_digits")}


def source_file(source: str, data_root: Path | str | None) -> Path | None:
    """Return the .npz file that `load_data` reads `source` from; None: it is from no such file.

    Raises ValueError for an unknown source, and for a file that is nowhere.
    """
    if source == "digits":
        return None
    if source in FILE_SOURCES:
        return npz_file(source, data_root)
    if not source.endswith(".npz"):
        raise ValueError(_unknown_source(source))
    return _locate(source, data_root)


def require_source(source: str, data_root: Path | str | None, download: bool) -> None:
    """Raise ValueError where `source` is not there, nor to be downloaded; without loading it."""
    check_source(source, data_root, download)
    if source in FILE_SOURCES:
        require(source, data_root, download)
        return
    path = source_file(source, data_root)
    if path is not None and not path.is_file():
        raise ValueError(f"source must be an .npz file that exists, found none at {path}")


def check_source(source: object, data_root: Path | str | None, download: bool) -> None:
    """Raise ValueError for what neither names a source nor where it lies."""
    instance("source", source, str, what="a text")
    as_path("source", source)
    if data_root is not None:
        as_path("data_root", data_root)
    flag("download", download)


def require(name: str, data_root: Path | str | None, download: bool) -> None:
    """Raise ValueError, with what was looked for, where `name` is not there nor downloadable."""
    root, layout = root_of(data_root), LAYOUTS[name]
    if npz_file(name, data_root) is not None:
        return
    if layout is None:
        raise ValueError(
            f"data_root={str(root)!r} {_state(root, name)}: found no file {root / name}.npz, and "
            f"torchvision does not have it. Give the folder that holds {name}.npz as data_root; "
            f"the file holds {', '.join(KEYS)}"
        )
    absent = layout.missing(root)
    if absent is not None and not download:
        raise ValueError(not_found(name, root, layout, absent, "and download=False"))


def npz_file(name: str, data_root: Path | str | None) -> Path | None:
    """Return the .npz file that `name` is read from, or None where it is not from one."""
    root, layout = root_of(data_root), LAYOUTS[name]
    if layout is not None and layout.missing(root) is None:
        return None
    file = root / f"{name}.npz"
    return file if file.is_file() else None


def root_of(data_root: Path | str | None) -> Path:
    """Return the folder of the data sets; None is "data" in the current directory."""
    return DEFAULT_ROOT if data_root is None else Path(data_root)


def not_found(name: str, root: Path, layout: Layout, absent: Path, why: str) -> str:
    """Say what was looked for and where, and how to get it."""
    holds = layout.folder or " and ".join(layout.files)
    return (
        f"data_root={str(root)!r} {_state(root, layout.dataset)}: found no file {absent}, {why}. "
        f"Give the folder that holds {holds} (or {name}.npz, with {', '.join(KEYS)}) as data_root, "
        f"or get the files where there is a network, with download=True or "
        f"torchvision.datasets.{layout.dataset}({str(root)!r}, download=True)"
    )


def select_domains(source: str, domains: Sequence[str] | str | None = None) -> tuple[str, ...]:
    """Return the sources of the domains of `source`: a set such as "digit-five", or "A,B.npz".

    domains: which of them, in which order, as names or as text with commas; None is all. Raises
    ValueError for a name that is not one of them, for one given twice, and for none.
    """
    known = DOMAIN_SETS.get(source) or tuple(source.split(","))
    if domains is None:
        return known
    listed = domains.split(",") if isinstance(domains, str) else domains
    chosen = tuple(as_list("domains", listed, str, what="a list of domains"))
    for name in chosen:
        one_of("domains", name, known)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"domains must name at least one domain, each once, got {chosen}")
    return chosen


def n_domains(available: int, n_experiences: int | None) -> int:
    """Return how many of the available domains a stream has; raises ValueError for more."""
    count = available if n_experiences is None else bounded_int("n_experiences", n_experiences)
    if count > available:
        raise ValueError(f"n_experiences={count} is more than the {available} domains")
    return count


def require_sources(sources: Sequence[str], data_root: Path | str | None, download: bool) -> None:
    """As `require_source`, for all domains at once."""
    for_each_source(sources, lambda source: require_source(source, data_root, download))


def for_each_source(sources: Sequence[str], function: Callable[[str], Any]) -> list[Any]:
    """Return what the function returns for each; raises one ValueError for all that fail."""
    results, failed = [], {}
    for source in sources:
        try:
            results.append(function(source))
        except ValueError as error:
            failed[source] = error
    if failed:
        reasons = "".join(f"\n- {source}: {error}" for source, error in failed.items())
        found = ",".join(source for source in sources if source not in failed)
        hint = f"\nTo go without: domains={found!r}" if found else ""
        raise ValueError(
            f"sources: {len(failed)} of {len(sources)} domains cannot be had:{reasons}{hint}"
        )
    return results


def n_classes_of(source: str, data_root: Path | str | None) -> int | None:
    """Return the number of a source's classes; None where only its file tells."""
    if source == "digits":
        return 10
    layout = LAYOUTS.get(source)
    return None if layout is None or npz_file(source, data_root) else layout.n_classes


def is_folder_source(source: str) -> bool:
    """Whether a stream's source names a folder: it has a slash, as in "cub/", and is no .npz."""
    return any(slash in source for slash in "/\\") and not source.endswith(".npz")


def locate_folder(source: Path | str, data_root: Path | str | None = None) -> Path:
    """Return the folder as given, or else inside data_root; raises ValueError where it is not."""
    path = Path(source)
    inside = path if data_root is None else Path(data_root) / path
    found = path if path.is_dir() else inside
    if not found.is_dir():
        nor = "" if inside == path else f" nor at {inside}"
        raise ValueError(f"folder must be one that exists, found none at {path}{nor}")
    return found


def _state(root: Path, what: str) -> str:
    return f"has no {what}" if root.is_dir() else "does not exist"


def _unknown_source(source: str) -> str:
    near = get_close_matches(source, NAMED_SOURCES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known = ", ".join(map(repr, NAMED_SOURCES))
    return f"source must be {known} or a path that ends in .npz, got {source!r}{hint}"


def _locate(source: str, data_root: Path | str | None) -> Path:
    path = Path(source)
    if data_root is None or path.is_file():
        return path
    inside = Path(data_root) / path
    if not inside.is_file():
        raise ValueError(f"source={source!r} was found neither at {path} nor at {inside}")
    return inside
