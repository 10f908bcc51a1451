"""Settings shared by all tests."""

import gc
import os

# One thread: sums are taken in the same order every time, and tiny tensors are quicker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from covering import left_to_the_slow_suite

torch.set_num_threads(1)
# No example database: a test leaves nothing behind. No deadline: a test asserts no time.
hypothesis.settings.register_profile("house", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items):
    """Of a grid that is marked `cover`, leave the combinations to the slow suite."""
    for item in left_to_the_slow_suite(items):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare what the tests import from collections of garbage, which every Trainer asks for."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def without_figures(monkeypatch):
    """Comparisons draw none, which takes longer than their tiny runs."""
    for name in ("plot_accuracy", "plot_tradeoff"):
        monkeypatch.setattr(f"avalanche_mgem.report.figures.accuracy.{name}", lambda *_: None)


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same global random state."""
    torch.manual_seed(0)
