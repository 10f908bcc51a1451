"""Benchmark streams as Avalanche scenarios: permuted, rotated or split by class.

`make_stream("permuted-digits", n_experiences=10)` is the short way. The long one is a data set from
`load_data` (scikit-learn's digits, MNIST, or any .npz), or an `ArrayData` of your own, given to
`permuted_stream`, `rotated_stream` or `split_stream`.
"""

from avalanche_mgem.streams.arrays import ArrayData, load_data
from avalanche_mgem.streams.naming import STREAM_KINDS, make_stream, parse_stream_name
from avalanche_mgem.streams.vision import permuted_stream, rotated_stream, split_stream

__all__ = [
    "STREAM_KINDS",
    "ArrayData",
    "load_data",
    "make_stream",
    "parse_stream_name",
    "permuted_stream",
    "rotated_stream",
    "split_stream",
]
