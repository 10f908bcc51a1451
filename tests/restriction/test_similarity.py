"""How alike gradients are, and how many modules train: against slow and obvious computations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_mgem.restriction.similarity import (
    check_metric,
    cosine,
    n_trained,
    sign_agreement,
    similarities,
    trained_by_module,
)

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12)


def slow_cosine(pairs):
    dot = math.fsum(a * b for a, b in pairs)
    norms = [math.sqrt(math.fsum(x[i] ** 2 for x in pairs)) for i in (0, 1)]
    return dot / (norms[0] * norms[1]) if all(norms) else 0.0


def slow_agreement(pairs):
    signs = [math.copysign(1, a) * math.copysign(1, b) for a, b in pairs if a and b]
    return sum(signs) / len(signs) if signs else 0.0


def both(pairs):
    return tuple(torch.tensor(side) for side in zip(*pairs, strict=True))


@given(pairs)
@settings(max_examples=30)
def test_against_a_slow_computation(pairs):
    one, other = both(pairs)
    assert cosine(one, other) == pytest.approx(slow_cosine(pairs), abs=1e-9)
    assert sign_agreement(one, other) == pytest.approx(slow_agreement(pairs))
    for metric in (cosine, sign_agreement):
        assert -1 <= metric(one, other) <= 1
        assert metric(one, other) == metric(other, one)
        assert metric(one, -other) == pytest.approx(-metric(one, other))


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_lengths_do_not_matter(scale):
    vector = torch.tensor([1.0, -2.0, 0.5])
    assert cosine(vector, scale * vector) == pytest.approx(1.0)
    assert cosine(vector, torch.zeros(3)) == sign_agreement(vector, torch.zeros(3)) == 0.0


def test_long_vectors_are_summed_in_chunks_and_widely():
    ones = torch.ones(5_000_000)
    assert cosine(ones, ones) == 1.0
    ones[4_500_000:] = -1.0
    assert sign_agreement(ones, torch.ones_like(ones)) == pytest.approx(0.8)


@pytest.mark.parametrize("metric", [cosine, sign_agreement])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said(metric, value):
    with pytest.raises(FloatingPointError, match="a gradient is not finite"):
        metric(torch.tensor([value, 1.0]), torch.ones(2))


def test_groups_are_compared_where_both_have_the_same_parameters():
    one = {"a": torch.ones(2, 2), "b": torch.ones(3), "grown": torch.ones(3), "gone": torch.ones(1)}
    other = {"a": torch.ones(2, 2), "b": -torch.ones(3), "grown": torch.ones(2)}
    groups = {"top": ["a", "grown"], "bottom": ["b"], "new": ["gone"]}
    overall, each = similarities(one, other, groups)
    assert each == {"top": pytest.approx(1.0), "bottom": pytest.approx(-1.0)}
    assert overall == pytest.approx(1 / 7)
    assert similarities(one, other, groups, "sign")[0] == pytest.approx(1 / 7)
    lengths = similarities(one, other, groups, lambda a, b: len(a) + len(b))
    assert lengths == (14, {"top": 8, "bottom": 6})
    assert similarities(one, {}, groups) == (None, {})
    with pytest.raises(ValueError, match="metric must be a finite number, got nan"):
        similarities(one, other, groups, lambda a, b: math.nan)


counts = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
scores = st.floats(-1, 1)


@settings(max_examples=60)
@given(scores, scores, counts, st.sampled_from(["hard", "graded"]), scores)
def test_the_less_alike_the_more_modules_train(one, other, bounds, schedule, threshold):
    low, high = bounds
    less, more = sorted((one, other))
    many, few = (n_trained(s, low, high, threshold, schedule) for s in (less, more))
    assert low <= few <= many <= high
    if schedule == "hard":
        assert many == (high if less < threshold else low)


def test_schedules_at_known_places():
    assert [n_trained(s, 2, 9) for s in (-1.0, -1e-9, 0.0, 1.0)] == [9, 9, 2, 2]
    graded = [n_trained(s, 2, 9, schedule="graded") for s in (-1, -0.5, 0, 0.5, 1, 7)]
    assert graded == [9, 7, 6, 4, 2, 2]  # 9, 7.25, 5.5, 3.75, 2


names = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1)


@given(names, st.data())
@settings(max_examples=60)
def test_modules_decide_each_on_its_own_within_bounds(names, data):
    each = {n: data.draw(scores) for n in names if data.draw(st.booleans())}
    low, high = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(names))])))
    trained = trained_by_module(names, each, low, high, 0.1)
    assert list(trained) == [n for n in names if n in trained]  # their order
    assert low <= len(trained) <= high
    wanting = [n for n in names if n not in each or each[n] < 0.1]
    if low <= len(wanting) <= high:
        assert list(trained) == wanting
    elif len(wanting) > high:
        assert list(trained) == wanting[:high]
    else:
        added = [n for n in trained if n not in wanting]
        assert set(wanting) < set(trained)
        assert added == [n for n in names if n not in wanting][: len(added)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: n_trained(0.0, -1, 2), "low must be a whole number >= 0, got -1"),
        (lambda: n_trained(0.0, 3, 2), "high must be >= low, got low=3 and high=2"),
        (lambda: n_trained(0.0, 1, 2, schedule="soft"), "schedule: unknown 'soft'"),
        (lambda: trained_by_module(["a"], {}, 1, 0), "high must be >= low"),
        (lambda: check_metric("cosin"), "metric: unknown 'cosin'; did you mean 'cosine'"),
        (lambda: cosine(torch.ones(2), torch.ones(3)), r"of one length, got \(2,\) and \(3,\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
