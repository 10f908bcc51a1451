"""Benchmark streams as Avalanche scenarios: permuted, rotated, split by class, of domains, text.

`make_stream("permuted-digits", n_experiences=10)` is the short way. The long one is a data set from
`load_data` (scikit-learn's digits, torchvision's sets, or any .npz), or an `ArrayData` of your own,
given to `permuted_stream`, `rotated_stream`, `split_stream` or `correlated_stream`, or several to
`domains_stream`. `load_image_folder` reads folders of images, and `corrupted` spoils a stream's.
`text_stream` makes one of text classification tasks; more about text is in `streams.text`.
`scenario_from_datasets` makes one of pairs of data sets of torch, torchvision or continuum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_mgem.lazy import public_names

if TYPE_CHECKING:
    from avalanche_mgem.streams.arrays import ArrayData, load_data
    from avalanche_mgem.streams.datasets import scenario_from_datasets
    from avalanche_mgem.streams.naming import (
        STREAM_KINDS,
        make_stream,
        parse_stream_name,
        stream_files,
        stream_folder,
    )
    from avalanche_mgem.streams.places import DOMAIN_SETS, NAMED_SOURCES
    from avalanche_mgem.streams.text import TextTask, text_stream
    from avalanche_mgem.streams.vision.correlated import correlated_stream
    from avalanche_mgem.streams.vision.corruption_names import CORRUPTIONS
    from avalanche_mgem.streams.vision.corruptions import corrupted
    from avalanche_mgem.streams.vision.domains import domains_stream, load_domains
    from avalanche_mgem.streams.vision.image_folders import folder_digest, load_image_folder
    from avalanche_mgem.streams.vision.vision import permuted_stream, rotated_stream, split_stream

__all__ = [
    "CORRUPTIONS",
    "DOMAIN_SETS",
    "NAMED_SOURCES",
    "STREAM_KINDS",
    "ArrayData",
    "TextTask",
    "correlated_stream",
    "corrupted",
    "domains_stream",
    "folder_digest",
    "load_data",
    "load_domains",
    "load_image_folder",
    "make_stream",
    "parse_stream_name",
    "permuted_stream",
    "rotated_stream",
    "scenario_from_datasets",
    "split_stream",
    "stream_files",
    "stream_folder",
    "text_stream",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "avalanche_mgem.streams.arrays": ("ArrayData", "load_data"),
        "avalanche_mgem.streams.datasets": ("scenario_from_datasets",),
        "avalanche_mgem.streams.naming": (
            "STREAM_KINDS",
            "make_stream",
            "parse_stream_name",
            "stream_files",
            "stream_folder",
        ),
        "avalanche_mgem.streams.places": ("DOMAIN_SETS", "NAMED_SOURCES"),
        "avalanche_mgem.streams.text": ("TextTask", "text_stream"),
        "avalanche_mgem.streams.vision.correlated": ("correlated_stream",),
        "avalanche_mgem.streams.vision.corruption_names": ("CORRUPTIONS",),
        "avalanche_mgem.streams.vision.corruptions": ("corrupted",),
        "avalanche_mgem.streams.vision.domains": ("domains_stream", "load_domains"),
        "avalanche_mgem.streams.vision.image_folders": ("folder_digest", "load_image_folder"),
        "avalanche_mgem.streams.vision.vision": (
            "permuted_stream",
            "rotated_stream",
            "split_stream",
        ),
    },
)
