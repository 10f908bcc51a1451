import re

import pytest
import torch
import torchvision

from avalanche_mgem.streams import load_data


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)


@pytest.mark.parametrize("download", [False, True])
def test_files_that_are_there_are_read_as_they_are(mnist_root, download):
    data = load_data("mnist", data_root=mnist_root, download=download)
    assert data.x_train.shape == (20, 1, 28, 28)
    assert data.x_test.shape == (10, 1, 28, 28)
    assert data.y_train.tolist() == [*range(10), *range(10)]
    raw = (mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    pixels = torch.tensor(list(raw), dtype=torch.float32).reshape(20, 1, 28, 28)
    assert torch.equal(data.x_train, pixels / 255)


def test_the_default_root_is_the_folder_data(mnist_root, monkeypatch):
    mnist_root.rename(mnist_root.parent / "data")
    monkeypatch.chdir(mnist_root.parent)
    assert len(load_data("mnist", download=False).x_test) == 10


def test_a_missing_file_names_root_path_and_remedy(mnist_root):
    missing = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    missing.unlink()
    message = (
        rf"data_root='{re.escape(str(mnist_root))}' has no MNIST: found no file "
        rf"{re.escape(str(missing))}, and download=False.*download=True or torchvision"
    )
    with pytest.raises(ValueError, match=message):
        load_data("mnist", data_root=mnist_root, download=False)


def test_a_root_that_does_not_exist_is_said_not_to(tmp_path):
    with pytest.raises(ValueError, match=r"data_root='.*nowhere' does not exist: found no file"):
        load_data("mnist", data_root=tmp_path / "nowhere", download=False)


def test_a_download_that_fails_is_told_as_such(no_network, tmp_path):
    message = (
        r"data_root=.*no file .*train-images-idx3-ubyte, and the download failed "
        r"\(RuntimeError: no route to host\)"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_data("mnist", data_root=tmp_path, download=True)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("contents", [b"", b"text that is no idx file", b"\0\0\x0a\3" + bytes(40)])
def test_files_that_cannot_be_read_are_said_so(mnist_root, name, contents):
    (mnist_root / "MNIST" / "raw" / name).write_bytes(contents)
    with pytest.raises(ValueError, match=r"data_root='.*': the MNIST files in .* cannot be read"):
        load_data("mnist", data_root=mnist_root, download=False)
