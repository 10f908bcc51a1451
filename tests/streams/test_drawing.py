"""Draws of samples: counts, proportions, and random states that nobody else sees."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_mgem.streams.drawing import Draw, draw_share

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.array)
SHARES = st.floats(0.01, 0.99)


def draw(labels, share, seed=0, experience=0):
    return draw_share(labels, Draw.VALIDATION, share, seed, experience)


def slow_counts(labels, share):
    """Sainte-Laguë: one row after the other to the label whose quotient is the largest."""
    sizes, given_ = Counter(labels.tolist()), Counter()
    for _ in range(max(1, round(share * len(labels)))):
        open_ = [label for label in sizes if given_[label] < sizes[label] - 1]
        if not open_:
            break
        best = max(sizes[label] / (2 * given_[label] + 1) for label in open_)
        ties = [x for x in open_ if np.isclose(sizes[x] / (2 * given_[x] + 1), best)]
        given_[ties[0]] += 1
    return given_, sizes


@given(LABELS, SHARES)
def test_labels_keep_their_proportions(labels, share):
    rows = draw(labels, share)
    found, (expected, sizes) = Counter(labels[rows].tolist()), slow_counts(labels, share)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert sum(found.values()) == sum(expected.values())
    for label, size in sizes.items():
        assert found[label] < size
        assert abs(found[label] - expected[label]) <= 1  # ties go to either
        if len(rows) == round(share * len(labels)) and min(sizes.values()) > 1 / (1 - share) + 1:
            assert abs(found[label] - share * size) < 1.5


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_equal_classes_give_equal_numbers(share):
    labels = np.repeat(np.arange(10), 20)
    assert set(Counter(labels[draw(labels, share)].tolist()).values()) == {round(20 * share)}


def test_each_row_is_drawn_as_often_as_any_other_of_its_label():
    labels = np.array([0] * 8 + [1] * 4)
    times = sum(np.isin(np.arange(12), draw(labels, 0.25, seed)) for seed in range(400))
    assert np.all(np.abs(times - 100) < 40)


def test_seed_and_experience_decide():
    labels = np.arange(60) % 3
    draws = [tuple(draw(labels, 0.2, *of)) for of in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_of_single_samples_none_is_taken():
    assert len(draw(np.arange(5), 0.5)) == 0
    assert draw(np.array([0, 1, 1]), 0.9).tolist() in ([1], [2])
