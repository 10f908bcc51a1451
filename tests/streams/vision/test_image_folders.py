import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_mgem.streams import permuted_stream, rotated_stream, split_stream
from avalanche_mgem.streams.places import is_folder_source, locate_folder
from avalanche_mgem.streams.vision.correlated import correlated_stream
from avalanche_mgem.streams.vision.corruptions import corrupted
from avalanche_mgem.streams.vision.image_folders import folder_digest, load_image_folder
from avalanche_mgem.streams.vision.images import resize_images

BIRDS = {"albatross": 5, "bunting": 4, "crow": 10}


def _write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def _write_classes(root, sizes, start=0):
    """Images of many sizes, of one colour each that tells class and number."""
    for label, (name, count) in enumerate(sizes.items()):
        for i in range(start, start + count):
            colour = np.full((6 + i, 9, 3), (label * 20, i, 200))
            _write(root / name / f"{i:03}.png", colour)


@pytest.fixture
def birds(tmp_path):
    _write_classes(tmp_path / "birds", BIRDS)
    return tmp_path / "birds"


def _numbers(x):
    return x[:, 1, 0, 0].tolist()


@pytest.mark.parametrize(
    ("share", "counts"), [(0.2, [1, 1, 2]), (0.5, [2, 2, 5]), (0.99, [4, 3, 9])]
)
def test_a_folder_of_classes_is_divided_by_class(birds, share, counts):
    data = load_image_folder(birds, 8, test_share=share)
    assert data.name == "birds"
    assert data.sample_shape == (3, 8, 8)
    assert data.x_train.dtype == data.x_test.dtype == torch.uint8
    assert torch.bincount(data.y_test).tolist() == counts
    for label, total in enumerate(BIRDS.values()):
        parts = [
            _numbers(x[y == label])
            for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
        ]
        assert sorted(parts[0] + parts[1]) == list(range(total))
        assert parts[0] == sorted(parts[0])
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert torch.equal(x[:, 0, 0, 0].long(), y * 20)
        assert torch.equal(x, x[:, :, :1, :1].expand_as(x))


def test_the_division_is_the_seeds(birds):
    tests = [
        _numbers(load_image_folder(birds, 2, test_share=0.4, seed=s).x_test) for s in (0, 0, 1)
    ]
    assert tests[0] == tests[1] != tests[2]


def test_train_and_test_are_taken_where_they_are(tmp_path):
    _write_classes(tmp_path / "train", {"a": 3, "b": 2})
    _write_classes(tmp_path / "test", {"a": 1, "b": 2}, start=7)
    (tmp_path / "notes").mkdir()
    data = load_image_folder(tmp_path, 4)
    assert _numbers(data.x_train) == [0, 1, 2, 0, 1]
    assert _numbers(data.x_test) == [7, 7, 8]
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 0, 0, 1, 1], [0, 1, 1])


def test_images_are_resized_as_all_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 7, 12, 3), dtype=np.uint8)
    for i in range(2):
        _write(tmp_path / "one" / f"{i}.png", pixels[i])
    data = load_image_folder(tmp_path, 5, test_share=0.5)
    expected = resize_images(torch.from_numpy(pixels).permute(0, 3, 1, 2), 5)
    found = torch.cat([data.x_train, data.x_test])
    assert any(torch.equal(found, expected[order]) for order in ([0, 1], [1, 0]))
    assert data.resized(5).x_train is data.x_train


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    (tmp_path / "grey").mkdir()
    for i in range(2):
        image = Image.fromarray(np.full((4, 4), 255, dtype=np.uint8)).convert("RGB")
        suffix = "tif" if mode == "CMYK" else "png"
        image.convert(mode).save(tmp_path / "grey" / f"{i}.{suffix}")
    data = load_image_folder(tmp_path, 4)
    assert data.sample_shape == (3, 4, 4)
    assert int(data.x_train.min()) == 255


def test_all_kinds_of_streams_work_on_it(birds):
    data = load_image_folder(birds, 6)
    for build in (permuted_stream, rotated_stream, split_stream, correlated_stream):
        stream = corrupted(build(data, n_experiences=2), "blur")
        assert stream.train_stream[1].dataset[0][0].shape == (3, 6, 6)


def test_a_broken_file_is_named(birds):
    path = birds / "crow" / "003.png"
    for contents in (b"", b"no image", path.read_bytes()[:40]):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"crow.003\.png cannot be read as an image \("):
            load_image_folder(birds, 4)


def test_folders_that_hold_no_classes_are_named(tmp_path, birds):
    with pytest.raises(
        ValueError, match=r"folder must be one that exists, found none at .*nowhere"
    ):
        load_image_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty must have one folder a class, each with images"):
        load_image_folder(tmp_path / "empty")
    (birds / "dodo").mkdir()
    (birds / "dodo" / "notes.txt").write_text("none left")
    with pytest.raises(ValueError, match=r"birds must have one folder a class.*classes dodo"):
        load_image_folder(birds)


def test_a_class_needs_an_image_for_each_part(birds):
    _write_classes(birds, {"kiwi": 1})
    with pytest.raises(ValueError, match=r"birds.kiwi has one image, but needs one for training"):
        load_image_folder(birds)


def test_parts_must_have_the_same_classes(tmp_path):
    _write_classes(tmp_path / "train", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"must have both 'train' and 'test'.*got train"):
        load_image_folder(tmp_path)
    _write_classes(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(ValueError, match=r"the same classes, but only one of them has b, c"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 0), ("image_size", 8.0), ("test_share", 0), ("test_share", 1.0), ("seed", -1)],
)
def test_arguments_are_checked(birds, name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        load_image_folder(birds, **{name: value})


def test_a_folder_is_found_as_given_or_in_the_data_root(birds, tmp_path):
    assert locate_folder(birds) == locate_folder(birds, tmp_path / "other") == birds
    assert locate_folder("birds/", tmp_path) == birds
    with pytest.raises(ValueError, match=r"found none at bird nor at .*bird"):
        locate_folder("bird", tmp_path)


@pytest.mark.parametrize("source", ["birds/", "data/birds", "./birds", "C:\\birds"])
def test_a_source_with_a_slash_is_a_folder(source):
    assert is_folder_source(source)


@pytest.mark.parametrize("source", ["birds", "my/file.npz", "cifar100", ""])
def test_other_sources_are_not(source):
    assert not is_folder_source(source)


def test_a_digest_is_of_names_and_sizes(birds, tmp_path):
    digest = folder_digest(birds)
    copy = shutil.copytree(birds, tmp_path / "copy")
    assert folder_digest(copy) == digest
    (copy / "crow" / "readme.txt").write_text("not an image")
    assert folder_digest(copy) == digest
    (copy / "crow" / "000.png").rename(copy / "crow" / "new.png")
    assert folder_digest(copy) != digest


@pytest.mark.parametrize("suffix", ["bmp", "PPM", "pgm", "tif", "tiff"])
def test_a_digest_sees_pixels_where_sizes_cannot_tell(tmp_path, suffix):
    path = tmp_path / "crow" / f"0.{suffix}"
    digests = []
    for colour in (3, 4, 3):
        _write(path, np.full((4, 4), colour))
        size = path.stat().st_size
        os.utime(path, ns=(len(digests), len(digests)))
        digests.append(folder_digest(tmp_path))
    _write(tmp_path / "larger" / path.name, np.zeros((4, 4)))
    assert (tmp_path / "larger" / path.name).stat().st_size == size
    assert digests[0] == digests[2] != digests[1]
