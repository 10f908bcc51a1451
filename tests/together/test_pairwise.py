"""The cover of pairs covers them."""

import itertools
import math

import pytest
from pairwise import allowed_pairs, pairs_of, pairwise_cover

SIZES = [[2, 2], [3, 3, 3, 3], [7, 5, 4, 3, 3, 5, 7, 2], [1, 4], [6]]


def factors_of(sizes):
    return {f"factor {i}": [f"level {j}" for j in range(size)] for i, size in enumerate(sizes)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_pair_of_levels_of_every_two_factors_occurs(sizes):
    factors = factors_of(sizes)
    cases = pairwise_cover(factors)
    for (one, levels), (other, others) in itertools.combinations(factors.items(), 2):
        met = {(case[one], case[other]) for case in cases}
        assert met == set(itertools.product(levels, others))
    largest = sorted(sizes)[-2:] if len(sizes) > 1 else [0]
    assert len(cases) <= 2 * math.prod(largest)  # no fewer than their product can do
    assert cases == pairwise_cover(factors)


def test_what_is_not_allowed_does_not_occur_and_all_else_does():
    factors = factors_of([4, 3, 5])
    is_allowed = lambda case: (  # noqa: E731
        (case.get("factor 0"), case.get("factor 2")) != ("level 1", "level 2")
    )
    cases = pairwise_cover(factors, is_allowed)
    assert all(map(is_allowed, cases))
    found = set.union(*map(pairs_of, cases))
    assert found == allowed_pairs(factors, is_allowed)
    assert len(found) == 4 * 3 + 4 * 5 + 3 * 5 - 1
