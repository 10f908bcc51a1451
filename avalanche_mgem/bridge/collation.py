"""How training makes batches of a data set's samples: what is measured besides must be like them.

A loader may be the strategy's own, with a collate function that no data set knows of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch.utils.data import DataLoader, default_collate

from avalanche_mgem.bridge.fields import Batch, OneByOne

Sample = Any
Collate = Callable[[list[Sample]], Batch]
Transform = Literal["eval", "train"]


def collate_of(loader: Any, dataset: Any) -> Collate:
    """Return the function that makes batches: the loader's where it has one, else the data set's.

    Args:
        loader: torch's, Avalanche's, or anything that has one of them among its attributes.
        dataset: whose samples are collated.
    """
    inside = [each for each in getattr(loader, "__dict__", {}).values() if _loads(each)]
    for each in (loader, *inside):
        found = getattr(each, "collate_fn", None)
        found = found or getattr(each, "loader_kwargs", {}).get("collate_fn")
        if found is not None:
            own: Collate = found
            return own
    return getattr(dataset, "collate_fn", None) or default_collate


def view(dataset: Any, transform: Transform) -> Any:
    """Return the data set with the transformations of this name, where it has any."""
    switch = getattr(dataset, transform, None)
    return switch() if callable(switch) else dataset


def batches_of(parts: Sequence[list[Sample]], collate: Collate) -> list[Batch]:
    """Return a batch of each part's samples.

    Where samples of one part make no batch together, which a batch size of one would not show,
    those of all parts go one by one.
    """
    try:
        return [collate(part) for part in parts]
    except Exception:  # whatever a collate function raises on samples that differ in size
        if all(len(part) == 1 for part in parts):
            raise
        return [OneByOne(collate([sample]) for sample in part) for part in parts]


def _loads(value: Any) -> bool:
    return isinstance(value, DataLoader) or hasattr(value, "loader_kwargs")
