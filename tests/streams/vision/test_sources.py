"""Named data sets: in torchvision's layouts, made here in small, and as NAME.npz."""

import bz2
import pickle
import re

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from avalanche_mgem.streams import NAMED_SOURCES, load_data, make_stream
from avalanche_mgem.streams.places import FILE_SOURCES

TRAIN, TEST = 20, 10
# name -> image shape, what torchvision calls it
TORCHVISION = {
    "mnist": ((1, 28, 28), "MNIST"),
    "fashion-mnist": ((1, 28, 28), "FashionMNIST"),
    "cifar10": ((3, 32, 32), "CIFAR10"),
    "cifar100": ((3, 32, 32), "CIFAR100"),
    "svhn": ((3, 32, 32), "SVHN"),
    "usps": ((1, 16, 16), "USPS"),
}


def _pixels(shape, size):
    return np.random.default_rng(size).integers(0, 256, (size, *shape), dtype=np.uint8)


def _labels(size):
    return (np.arange(size) * 3) % 10


def _write_mnist(root, folder, write_idx):
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, size in (("train", TRAIN), ("t10k", TEST)):
        write_idx(raw / f"{part}-images-idx3-ubyte", _pixels((28, 28), size))
        write_idx(raw / f"{part}-labels-idx1-ubyte", _labels(size))


def _write_cifar(root, folder, train_files, test_file, label_key, meta, meta_key):
    (root / folder).mkdir()

    def dump(name, value):
        (root / folder / name).write_bytes(pickle.dumps(value))

    x, y = _pixels((3, 32, 32), TRAIN).reshape(TRAIN, -1), _labels(TRAIN)
    chunks = np.array_split(np.arange(TRAIN), len(train_files))
    for name, rows in zip(train_files, chunks, strict=True):
        dump(name, {"data": x[rows], label_key: y[rows].tolist()})
    tested = _pixels((3, 32, 32), TEST).reshape(TEST, -1)
    dump(test_file, {"data": tested, label_key: _labels(TEST).tolist()})
    dump(meta, {meta_key: list("abcdefghij")})


def _write_svhn(root):
    for part, size in (("train", TRAIN), ("test", TEST)):
        y = _labels(size)
        scipy.io.savemat(
            root / f"{part}_32x32.mat",
            {
                "X": _pixels((3, 32, 32), size).transpose(2, 3, 1, 0),
                "y": np.where(y == 0, 10, y)[:, None],
            },
        )


def _write_usps(root):
    for name, size in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        lines = []
        for image, label in zip(_pixels((256,), size), _labels(size), strict=True):
            # a little up, because torchvision cuts off what it scales back
            values = (f"{i + 1}:{(v + 0.5) / 255 * 2 - 1:.6f}" for i, v in enumerate(image))
            lines.append(f"{label + 1} {' '.join(values)}")
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


@pytest.fixture
def write_layout(tmp_path, monkeypatch, write_idx):
    """Write a small data set where torchvision looks for it, checksums aside."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, *_: True)
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    cifar10 = ("cifar-10-batches-py", batches, "test_batch", "labels", "batches.meta")
    cifar100 = ("cifar-100-python", ["train"], "test", "fine_labels", "meta")
    writers = {
        "mnist": lambda root: _write_mnist(root, "MNIST", write_idx),
        "fashion-mnist": lambda root: _write_mnist(root, "FashionMNIST", write_idx),
        "cifar10": lambda root: _write_cifar(root, *cifar10, "label_names"),
        "cifar100": lambda root: _write_cifar(root, *cifar100, "fine_label_names"),
        "svhn": _write_svhn,
        "usps": _write_usps,
    }

    def write(name):
        writers[name](tmp_path)
        return tmp_path

    return write


def _npz(shape, step=1):
    last = (*shape[1:], shape[0])
    return {
        "x_train": _pixels(last, TRAIN) // step,
        "y_train": _labels(TRAIN),
        "x_test": _pixels(last, TEST) // step,
        "y_test": _labels(TEST),
    }


@pytest.mark.parametrize("name", list(TORCHVISION))
@pytest.mark.parametrize("download", [False, True])
def test_torchvisions_files_are_read_as_they_are(write_layout, name, download):
    root, shape = write_layout(name), TORCHVISION[name][0]
    data = load_data(name, data_root=root, download=download, keep_uint8=True)
    assert data.name == name
    for x, y, size in ((data.x_train, data.y_train, TRAIN), (data.x_test, data.y_test, TEST)):
        assert x.dtype == torch.uint8
        assert torch.equal(x, torch.from_numpy(_pixels(shape, size)))
        assert y.tolist() == _labels(size).tolist()


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_without_keep_uint8_pixels_are_floats_up_to_one(write_layout, name):
    root = write_layout(name)
    data, pixels = (load_data(name, data_root=root, keep_uint8=keep) for keep in (False, True))
    assert data.x_train.dtype == torch.float32
    assert torch.equal(data.x_train, pixels.x_train.float() / 255)


@pytest.mark.parametrize("name", FILE_SOURCES)
@pytest.mark.parametrize("download", [False, True])
def test_an_npz_stands_in(write_npz, tmp_path, name, download):
    shape = TORCHVISION.get(name, ((3, 32, 32),))[0]
    contents = _npz(shape)
    write_npz(contents, f"{name}.npz")
    data = load_data(name, data_root=tmp_path, download=download)
    assert (data.name, data.sample_shape) == (name, shape)
    assert data.y_test.tolist() == contents["y_test"].tolist()


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_torchvisions_layout_goes_before_the_npz_where_it_is_complete(
    write_layout, write_npz, name
):
    shape = TORCHVISION[name][0]
    write_npz(_npz(shape, step=2), f"{name}.npz")
    root = write_layout(name)
    data = load_data(name, data_root=root, keep_uint8=True)
    assert torch.equal(data.x_train, torch.from_numpy(_pixels(shape, TRAIN)))
    next(path for path in root.rglob("*t*") if path.is_file() and path.suffix != ".npz").unlink()
    data = load_data(name, data_root=root, download=False, keep_uint8=True)
    stored = torch.from_numpy(_npz(shape, step=2)["x_train"])
    assert torch.equal(data.x_train, stored.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_what_is_missing_is_named_with_both_ways_to_get_it(tmp_path, name):
    title = TORCHVISION[name][1]
    message = (
        rf"data_root='{re.escape(str(tmp_path))}' has no {title}: found no file .*, and "
        rf"download=False.*\(or {name}\.npz, with x_train.*torchvision\.datasets\.{title}"
    )
    with pytest.raises(ValueError, match=message):
        load_data(name, data_root=tmp_path, download=False)


@pytest.mark.parametrize("name", sorted(set(FILE_SOURCES) - set(TORCHVISION)))
@pytest.mark.parametrize("download", [False, True])
def test_what_torchvision_does_not_have_must_be_a_file(tmp_path, name, download):
    message = rf"has no {name}: found no file .*{name}\.npz, and torchvision does not have it"
    with pytest.raises(ValueError, match=message):
        load_data(name, data_root=tmp_path, download=download)


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_a_failed_download_is_told(tmp_path, monkeypatch, name):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no route\nto host")

    title = TORCHVISION[name][1]
    monkeypatch.setattr(torchvision.datasets, title, fail)
    message = rf"has no {title}.*the download failed \(RuntimeError: no route to host\)"
    with pytest.raises(ValueError, match=message):
        load_data(name, data_root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_files_with_other_checksums_cannot_be_read(write_layout, monkeypatch, name):
    root = write_layout(name)
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, *_: False)
    message = rf"the {TORCHVISION[name][1]} files in .* cannot be read .*corrupted"
    with pytest.raises(ValueError, match=message):
        load_data(name, data_root=root)


def test_an_npz_with_test_labels_of_its_own_names_the_file(write_npz, tmp_path):
    write_npz({**_npz((3, 8, 8)), "y_test": _labels(TEST) + 50}, "cifar100.npz")
    with pytest.raises(ValueError, match=r"cifar100\.npz: y_test has labels"):
        load_data("cifar100", data_root=tmp_path)


def test_a_stream_keeps_pixels_at_a_byte_each(write_npz, tmp_path):
    write_npz(_npz((3, 32, 32)), "cifar100.npz")
    stream = make_stream("split-cifar100", data_root=tmp_path, n_experiences=2)
    assert len(pickle.dumps(stream)) < 1.5 * (TRAIN + TEST) * 3 * 32 * 32
    assert stream.train_stream[0].dataset[0][0].dtype == torch.float32


def test_all_sources_are_named():
    assert set(NAMED_SOURCES) == {"digits", *TORCHVISION, "mnist_m", "synthetic_digits"}
