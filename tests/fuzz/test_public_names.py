"""No public name and no argument is left out of the tables without a reason."""

import pkgutil
from importlib import import_module
from inspect import isclass, isroutine, signature

import fuzz_targets
import pytest

import avalanche_mgem

_MODULES = [
    "avalanche_mgem",
    *(each.name for each in pkgutil.walk_packages(avalanche_mgem.__path__, "avalanche_mgem.")),
]


def public():
    """Every class and function that an `__all__` names, by that name."""
    names = {}
    for module in map(import_module, _MODULES):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isclass(value) or isroutine(value):
                assert names.setdefault(name, value) is value, f"two are called {name}"
    return names


PUBLIC = public()


def test_every_name_is_tried_or_has_a_reason():
    tried, left = set(fuzz_targets.TABLE), set(fuzz_targets.NOT_TRIED)
    assert not tried & left
    assert PUBLIC.keys() - tried - left == set()
    assert left - PUBLIC.keys() == set()
    assert all(fuzz_targets.NOT_TRIED.values())
    assert len(tried) == sum(map(len, fuzz_targets.KINDS.values()))


@pytest.mark.parametrize("name", sorted(fuzz_targets.TABLE))
def test_every_argument_is_tried_or_has_a_reason(name):
    target = fuzz_targets.TABLE[name]
    parameters = signature(PUBLIC.get(name, target.call)).parameters.values()
    some = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in some}
    tried = set(target.arguments)
    assert named - tried - set(target.left) == set()
    assert takes_more or tried <= named
    assert not tried & set(target.left)
    assert all(target.left.values())
