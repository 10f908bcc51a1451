"""Where tasks start and end."""

import pytest
from avalanche.benchmarks.scenarios.online import split_online_stream
from tiny import domain_stream

from avalanche_mgem.bridge.boundaries import Boundary, task_boundary


def test_an_experience_is_a_task():
    for experience in domain_stream().train_stream:
        assert task_boundary(experience) == Boundary(known=True, starts=True, ends=True)


def online(access, size=5):
    return split_online_stream(
        domain_stream(n_experiences=2).train_stream, size, access_task_boundaries=access, seed=0
    )


def test_sub_experiences_are_parts_of_a_task():
    boundaries = [task_boundary(experience) for experience in online(access=True)]
    starts = [b.starts for b in boundaries]
    ends = [b.ends for b in boundaries]
    assert starts == [True, *[False] * 4] * 2
    assert ends == [*[False] * 4, True] * 2


def test_without_access_nothing_is_known():
    for experience in online(access=False):
        assert task_boundary(experience) == Boundary(known=False, starts=False, ends=False)


@pytest.mark.parametrize("size", [5, 6])
def test_every_task_starts_even_where_avalanche_marks_no_end(size):
    boundaries = [task_boundary(experience) for experience in online(access=True, size=size)]
    assert sum(b.starts for b in boundaries) == 2
