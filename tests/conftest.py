"""Settings shared by all tests."""

import os

# One thread: sums are taken in the same order every time, and tiny tensors are quicker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# No example database: a test leaves nothing behind. No deadline: a test asserts no time.
hypothesis.settings.register_profile("house", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same global random state."""
    torch.manual_seed(0)
