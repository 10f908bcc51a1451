"""Two methods compared seed by seed, against values computed by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import configuration, held_out, made
from scipy.stats import wilcoxon

from avalanche_mgem.results.paired import paired_comparisons
from avalanche_mgem.results.statistics import signed_rank_p

T_OF_TWO = 4.302652729911275  # the 97.5% quantile of Student's t, 2 degrees of freedom


def run_of(method, seed, before, after, last, **fields):
    """A run of two tasks: ACC is (after + last) / 2, BWT after - before, LA (before + last) / 2."""
    accuracy = np.array([[before, 0.1], [after, last]])
    return made(method, seed, 2, accuracy=accuracy, **fields)


def three_seeds():
    first = [(0.9, 0.8, 0.8), (0.9, 0.7, 0.7), (0.8, 0.8, 0.7)]  # ACC .80, .70, .75
    second = [(0.9, 0.6, 0.8), (0.9, 0.6, 0.7), (0.9, 0.5, 0.7)]  # ACC .70, .65, .60
    return [run_of("a", seed, *values) for seed, values in enumerate(first)] + [
        run_of("b", seed, *values) for seed, values in enumerate(second)
    ]


def test_the_numbers_are_those_by_hand():
    (got,) = paired_comparisons(three_seeds(), ("a", "b"))
    assert (got.stream, got.first, got.second) == ("permuted-digits", "a", "b")
    assert (got.seeds, got.diverged, got.unpaired) == ((0, 1, 2), (), ())
    acc = got.scores["acc"]  # differences .10, .05, .15: standard deviation .05
    assert (acc.first, acc.second) == pytest.approx((0.75, 0.65))
    assert acc.difference == pytest.approx(0.1)
    assert acc.half_width == pytest.approx(T_OF_TWO * 0.05 / math.sqrt(3))
    assert acc.p == got.smallest_p == 0.25
    bwt = got.scores["bwt"]  # -.1, -.2, 0 against -.3, -.3, -.4: .2, .1, .4
    assert bwt.difference == pytest.approx(0.7 / 3)
    assert got.scores["forgetting"].difference == pytest.approx(-0.7 / 3)
    assert got.scores["forgetting"].p == 0.25
    la = got.scores["la"]  # 0, 0, -.05: of a single one that is not zero, p is 1
    assert la.difference == pytest.approx(-0.05 / 3)
    assert la.p == 1.0
    assert got.scores["seconds"].difference == 0.0


def test_the_other_way_round_only_signs_change():
    (got,) = paired_comparisons(three_seeds(), ["a", "b"])
    (back,) = paired_comparisons(three_seeds(), ["b", "a"])
    for name, score in got.scores.items():
        other = back.scores[name]
        np.testing.assert_array_equal(
            [other.first, other.second, other.difference, other.half_width, other.p],
            [score.second, score.first, -score.difference, score.half_width, score.p],
        )


def test_the_difference_can_be_sure_where_the_scores_are_not():
    """Seeds of very different difficulty, of which one method always has the same more."""
    levels = [0.2, 0.9, 0.4, 0.7, 0.55, 0.35]
    runs = [run_of("b", seed, level, level, level) for seed, level in enumerate(levels)]
    runs += [run_of("a", seed, *[level + 0.05] * 3) for seed, level in enumerate(levels)]
    acc = paired_comparisons(runs, ("a", "b"))[0].scores["acc"]
    assert acc.difference == pytest.approx(0.05)
    assert acc.half_width == pytest.approx(0, abs=1e-12)
    assert acc.p == 2 / 64  # equal differences share a rank, though they differ in the last bits


def test_one_pair_has_no_interval_and_no_seed_is_compared_with_another():
    runs = three_seeds()
    (got,) = paired_comparisons([runs[0], *runs[3:]], ("a", "b"))
    assert (got.seeds, got.unpaired) == ((0,), (1, 2))
    acc = got.scores["acc"]
    assert acc.difference == pytest.approx(0.1)
    assert math.isnan(acc.half_width)
    assert acc.p == got.smallest_p == 1.0


def test_methods_that_are_equal_in_every_seed_do_not_differ():
    runs = [replace(run, method=name) for run in three_seeds()[:3] for name in ("a", "b")]
    acc = paired_comparisons(runs, ("a", "b"))[0].scores["acc"]
    assert (acc.difference, acc.half_width, acc.p) == (0.0, 0.0, 1.0)


def test_a_score_that_a_run_lacks_is_not_compared():
    runs = three_seeds()
    runs[1] = replace(runs[1], baseline=np.full(2, math.nan))
    scores = paired_comparisons(runs, ("a", "b"))[0].scores
    fwt = scores["fwt"]
    assert all(map(math.isnan, (fwt.first, fwt.second, fwt.difference, fwt.half_width, fwt.p)))
    assert scores["acc"].p == 0.25
    assert math.isnan(scores["acc_task_il"].difference)


def test_pairs_of_which_a_run_diverged_are_left_out():
    runs = three_seeds()
    runs[4] = replace(runs[4], diverged=1)
    (got,) = paired_comparisons(runs, ("a", "b"))
    assert (got.seeds, got.diverged) == ((0, 2), (1,))
    assert got.scores["acc"].difference == pytest.approx(0.125)
    (none,) = paired_comparisons([replace(run, diverged=0) for run in runs], ("a", "b"))
    assert (none.seeds, none.diverged) == ((), (0, 1, 2))
    assert none.scores.keys() == got.scores.keys()
    assert all(math.isnan(score.difference) for score in none.scores.values())


def test_streams_are_apart_and_validation_data_follow_theirs():
    with_held = [replace(run, stream="x", validation=held_out(2)) for run in three_seeds()]
    alone = replace(three_seeds()[0], stream="z")
    got = paired_comparisons([*with_held, *three_seeds(), alone], ("a", "b"))
    assert [each.stream for each in got] == ["x", "x, validation data", "permuted-digits"]
    assert got[1].scores["acc"].difference == 0.0
    assert got[0].scores == got[2].scores


def test_what_else_differs_is_told():
    runs = three_seeds()
    told = configuration(training={"learning_rate": 0.01, "momentum": 0.9}, memory_strength=1)
    runs[:3] = [
        replace(
            run, configuration={**told, "seed": run.seed, "stream": run.configuration["stream"]}
        )
        for run in runs[:3]
    ]
    runs[0] = replace(runs[0], versions={"python": "3.12.0", "torch": "2.9.0", "peft": "0.21"})
    (got,) = paired_comparisons(runs, ("a", "b"))
    assert got.also_differs == (
        "training.learning_rate (0.01, 0.1)",
        "training.momentum (0.9, default)",
        "versions.python (3.12.0, 3.11.7)",
    )
    assert paired_comparisons(three_seeds(), ("a", "b"))[0].also_differs == ()


@pytest.mark.parametrize(
    ("paired", "message"),
    [
        (("a", "c"), "paired: unknown 'c'; known: a, b"),
        (("aa", "b"), "paired: unknown 'aa'; did you mean 'a'"),
        (("a", "a"), "paired must be the names of two methods"),
        (("a",), "paired must be the names of two methods"),
        (("a", "b", "a"), "paired must be the names of two methods"),
        ("ab", "paired must be two names of methods"),
        (None, "paired must be two names of methods"),
    ],
)
def test_names_are_looked_at(paired, message):
    with pytest.raises(ValueError, match=message):
        paired_comparisons(three_seeds(), paired)


def test_what_cannot_be_paired_is_refused():
    runs = three_seeds()
    with pytest.raises(ValueError, match="no seed in common on stream 'permuted-digits'"):
        paired_comparisons([*runs[:2], runs[5]], ("a", "b"))
    other = [replace(run, stream="z") for run in runs[3:]]
    with pytest.raises(ValueError, match="no stream in common"):
        paired_comparisons([*runs[:3], *other], ("a", "b"))
    longer = replace(runs[5], configuration=configuration(2, n_experiences=9))
    with pytest.raises(ValueError, match=r"seed 2 .* differ .*n_experiences \(2, 9\)"):
        paired_comparisons([*runs[:5], longer], ("a", "b"))
    with pytest.raises(ValueError, match="as many experiences"):
        paired_comparisons([*runs[:5], made("b", 2, 3)], ("a", "b"))
    with pytest.raises(ValueError, match="twice"):
        paired_comparisons([*runs, runs[0]], ("a", "b"))
    with pytest.raises(ValueError, match="at least one run"):
        paired_comparisons([], ("a", "b"))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, -5], 20 / 32),  # 10 of 32 patterns have a sum of 5 or less, 10 of 10 or more
        ([0.1], 1.0),
        ([0.1] * 5, 2 / 32),
        ([-0.1] * 6, 2 / 64),
        ([1, 1, -1], 1.0),  # the ranks are 2, 2, 2: sums of 2 or 4 are the nearest to 3
        (
            [1, 1, 2, -3],
            12 / 16,
        ),  # ranks 1.5, 1.5, 3, 4: nearer to 5 than 6 are twice 4.5, twice 5.5
        ([0, 0.0, 1, 2, 3], 2 / 8),
        ([0.0, 0.0], 1.0),
    ],
)
def test_p_by_hand(differences, p):
    assert signed_rank_p(differences) == p


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=7))
def test_p_is_the_share_of_all_patterns_of_signs(differences):
    kept = [value for value in differences if value]
    sizes = np.abs(kept)
    ranks = [(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes]

    def distance(signs):
        return abs(sum(rank * sign for rank, sign in zip(ranks, signs, strict=True)))

    patterns = list(itertools.product((-1, 1), repeat=len(kept)))
    as_far = [distance(signs) >= distance(np.sign(kept)) for signs in patterns]
    assert signed_rank_p([value / 10 for value in differences]) == np.mean(as_far)


@pytest.mark.parametrize("count", [1, 2, 6, 13, 50])
def test_p_is_scipys_where_nothing_ties(count):
    values = np.random.default_rng(count).normal(0.2, 1, count)
    assert signed_rank_p(list(values)) == pytest.approx(wilcoxon(values, method="exact").pvalue)


def test_p_of_no_numbers():
    assert math.isnan(signed_rank_p([0.1, math.nan]))
    with pytest.raises(ValueError, match="differences must hold at least one number"):
        signed_rank_p([])
