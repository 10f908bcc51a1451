"""Streams of images: permuted, rotated, split, correlated, of domains, with corruptions."""

from importlib import import_module

_PUBLIC = ("permuted_stream", "rotated_stream", "split_stream")


def __getattr__(name: str) -> object:
    # On first use: the modules of this package and `streams.arrays` need each other.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.vision"), name)
    return value
