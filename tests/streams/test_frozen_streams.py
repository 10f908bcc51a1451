"""Streams that results were published over: their samples stay the same, bit by bit."""

import hashlib

import pytest

from avalanche_mgem.streams import make_stream

SMALL = {"train_per_experience": 50, "test_per_experience": 40, "task_labels": True}


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("permuted-digits", {}, "d8e5b124b80abee7"),
        ("permuted-digits", SMALL, "c4ffff6e0ac40f82"),
        ("split-digits", {}, "0ed15837e31d62e6"),
        ("split-digits", SMALL, "8c55cc7fd3f579f8"),
    ],
)
def test_the_first_samples_are_as_they_were(name, arguments, expected):
    stream = make_stream(name, n_experiences=5, seed=0, **arguments)
    checksum = hashlib.sha256()
    for experience in [*stream.train_stream, *stream.test_stream]:
        for i in range(min(20, len(experience.dataset))):
            x, y, task = experience.dataset[i]
            checksum.update(x.numpy().tobytes())
            checksum.update(f"{y},{task};".encode())
    assert checksum.hexdigest()[:16] == expected
