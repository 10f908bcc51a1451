from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from text_cases import make_task

from avalanche_mgem.streams.text import TEXT_ORDERS, TextSample, TextTask, text_task_names
from avalanche_mgem.streams.text.tasks import chosen_tasks


def test_the_orders_are_the_papers():
    assert list(TEXT_ORDERS) == list("123456")
    for order in "123":
        assert sorted(TEXT_ORDERS[order]) == ["agnews", "amazon", "dbpedia", "yahoo"]
    for order in "456":
        assert len(TEXT_ORDERS[order]) == 15
        assert tuple(sorted(TEXT_ORDERS[order])) == text_task_names()
    assert len(set(TEXT_ORDERS.values())) == 6
    assert TEXT_ORDERS["1"] == ("dbpedia", "amazon", "yahoo", "agnews")
    assert TEXT_ORDERS["6"][0] == "yelp"
    assert TEXT_ORDERS["6"][-1] == "wic"


@pytest.mark.parametrize("tasks", ["2", 2, "dbpedia, amazon,agnews,yahoo", TEXT_ORDERS["2"]])
def test_an_order_and_its_names_are_one(tasks):
    assert tuple(chosen_tasks(tasks)) == TEXT_ORDERS["2"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("7", "unknown order '7'; known: 1, 2"),
        (0, "unknown order '0'"),
        ("", r"one or more names of tasks, got \[''\]"),
        ([], "one or more names"),
        ("rte,,cb", "one or more names"),
        (["rte", "cb", "rte"], "got more than once: rte"),
        ([make_task("rte"), "rte"], "got more than once: rte"),
    ],
)
def test_tasks_that_are_none_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        chosen_tasks(tasks)


def _ragged(counts):
    """A task with so many samples of each label."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    rows = [TextSample(f"text {i}", label) for i, label in enumerate(labels)]
    return TextTask("ragged", tuple(f"w{i}" for i in range(len(counts))), rows, rows)


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    size=st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_draws_are_as_balanced_as_can_be_and_never_more_than_asked_for(counts, size, seed):
    task = _ragged(counts)
    train = size + len(counts)
    drawn = task.drawn(train, size, seed=seed)
    for samples, wanted in ((drawn.train, train), (drawn.test, size)):
        assert len(samples) == min(wanted, sum(counts))
        assert len(set(samples)) == len(samples)
        assert set(samples) <= set(task.train)
        held = Counter(sample.label for sample in samples)
        most = max(held.values())
        assert all(held[i] >= most - 1 or held[i] == count for i, count in enumerate(counts))


def test_without_sizes_all_is_kept_as_it_is():
    task = make_task()
    drawn = task.drawn(None, None)
    assert list(drawn.train) == list(task.train)
    assert list(drawn.test) == list(task.test)


def test_a_smaller_draw_begins_a_larger_one_and_seeds_differ():
    task = make_task(n_train=40)
    large, small = (task.drawn(size, None, seed=3).train for size in (20, 9))
    assert list(large)[:9] == list(small)
    assert list(task.drawn(20, None, seed=4).train) != list(large)


def test_tasks_and_parts_are_drawn_independently():
    rows = make_task(n_train=30).train
    drawn = [TextTask(n, ("a", "b", "c"), rows, rows).drawn(12, 12) for n in ("one", "two")]
    assert len({tuple(part) for task in drawn for part in (task.train, task.test)}) == 4


def test_a_draw_does_not_depend_on_the_global_random_state():
    draws = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        draws.append(make_task().drawn(9, 6))
        assert torch.equal(torch.get_rng_state(), before)
    assert list(draws[0].train) == list(draws[1].train)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, None), "train_per_task=2 is less than the 3 labels of 'colours'"),
        ((0, None), "train_per_task must be a whole number >= 1, got 0"),
        ((None, 1.5), "test_per_task must be a whole number >= 1, got 1.5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_task().drawn(*sizes)


_ONE, _PAIR = TextSample("a", 0), TextSample("a", 0, "b")


@pytest.mark.parametrize(
    ("words", "train", "test", "message"),
    [
        (("x",), [_ONE], [_ONE], "two or more different label words"),
        (("x", "x"), [_ONE], [_ONE], "two or more different label words"),
        (("x", "y"), [], [_ONE], "'t' has no train samples"),
        (("x", "y"), [_ONE], [], "'t' has no test samples"),
        (("x", "y"), [TextSample("a", 2)], [_ONE], r"2 label words, but train labels \[2\]"),
        (("x", "y"), [_ONE, _PAIR], [_ONE], "train mixes single texts with pairs"),
        (("x", "y"), [_ONE], [TextSample("a", 1)], r"tests labels that it never trains: \['y'\]"),
    ],
)
def test_a_task_that_is_not_whole_is_refused(words, train, test, message):
    with pytest.raises(ValueError, match=message):
        TextTask("t", words, train, test)
