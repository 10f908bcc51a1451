"""Small data sets for the streams' tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avalanche_mgem.streams import ArrayData, load_data


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture(scope="session")
def distinct():
    """Images [2, 3, 4] of which no two values are alike, so that every permutation shows."""
    x = torch.arange(1, 30 * 24 + 1, dtype=torch.float32).reshape(30, 2, 3, 4)
    y = torch.arange(30) % 5
    return ArrayData("distinct", x[:20], y[:20], x[20:], y[20:])


@pytest.fixture
def arrays():
    """What a valid .npz file holds; a test spoils what it wants."""
    return {
        "x_train": np.linspace(0, 1, 60, dtype=np.float64).reshape(6, 10),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.linspace(1, 2, 30, dtype=np.float64).reshape(3, 10),
        "y_test": np.array([2, 1, 0]),
    }


@pytest.fixture
def write_npz(tmp_path):
    def write(contents, name="data.npz"):
        path = tmp_path / name
        np.savez(path, **contents)
        return path

    return write


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = (0x0800 + array.ndim).to_bytes(4, "big")
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + sizes + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def write_idx():
    """Write an array as MNIST's files are written."""
    return _write_idx


@pytest.fixture
def mnist_root(tmp_path):
    """A data root with an MNIST of 20 training and 10 test images."""
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, size in (("train", 20), ("t10k", 10)):
        images = generator.integers(0, 256, (size, 28, 28))
        _write_idx(raw / f"{part}-images-idx3-ubyte", images)
        _write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(size) % 10)
    return tmp_path / "root"
