"""Strategies by name are what the names say, and take what is said of them."""

import pickle

import pytest

from avalanche_mgem.lazy import Lazy, option_names, place_of
from avalanche_mgem.methods import known
from avalanche_mgem.methods.method import COMMON
from avalanche_mgem.results.describe import describe

KNOWN = {name: value for name, value in vars(known).items() if isinstance(value, Lazy)}


@pytest.mark.parametrize("name", KNOWN)
def test_a_place_is_where_the_class_is_defined(name):
    lazy = KNOWN[name]
    assert place_of(lazy.resolve()) == lazy.place
    assert describe(lazy) == describe(lazy.resolve())
    assert lazy == pickle.loads(pickle.dumps(lazy))


@pytest.mark.parametrize("name", KNOWN)
def test_the_options_are_those_of_the_signature(name):
    lazy = KNOWN[name]
    is_strategy = hasattr(lazy.resolve(), "train")
    assert option_names(lazy) == option_names(lazy.resolve()) - (COMMON if is_strategy else set())
