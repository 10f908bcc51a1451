"""Grids that are marked `cover` see every value of every parameter, in few cases."""

from itertools import product

import pytest
from covering import cover


@pytest.mark.parametrize("sizes", [(1,), (4,), (4, 3), (2, 5, 3), (6, 6)])
def test_every_value_is_seen_in_as_many_cases_as_the_longest_parameter_has(sizes):
    cases = [dict(enumerate(values)) for values in product(*map(range, sizes))]
    chosen = cover(cases)
    assert chosen == sorted(set(chosen))
    seen = {pair for index in chosen for pair in cases[index].items()}
    assert seen == {pair for case in cases for pair in case.items()}
    assert len(chosen) == max(sizes)


def test_a_grid_with_holes_is_covered():
    cases = [{"a": a, "b": b} for a, b in product(range(5), repeat=2) if abs(a - b) == 1]
    chosen = cover(cases)
    assert {cases[index]["a"] for index in chosen} == set(range(5))
    assert {cases[index]["b"] for index in chosen} == set(range(5))
    assert len(chosen) < len(cases)


def test_without_parameters_nothing_is_chosen():
    assert cover([]) == cover([{}]) == []
