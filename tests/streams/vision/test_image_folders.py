import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from avalanche_mgem.streams import permuted_stream, rotated_stream, split_stream
from avalanche_mgem.streams.places import is_folder_source, locate_folder
from avalanche_mgem.streams.vision.correlated import correlated_stream
from avalanche_mgem.streams.vision.corruptions import corrupted
from avalanche_mgem.streams.vision.image_files import class_folders
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


def _write_as(path, pixels, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16B":
        Image.frombytes(mode, pixels.shape[::-1], pixels.astype(">u2").tobytes()).save(path)
    else:
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32, "L": np.uint8}[mode]
        Image.fromarray(pixels.astype(dtype)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode


def _all_pixels(data):
    return torch.cat([data.x_train, data.x_test]).double()


@pytest.mark.parametrize(
    ("mode", "suffix", "bits"),
    [
        *(("I;16", suffix, bits) for suffix in ("png", "tif") for bits in (16, 12, 8, 3)),
        ("I;16B", "tif", 16),
        ("I;16B", "tif", 10),
        ("I", "pgm", 16),
        ("I", "tif", 31),
        ("I", "tif", 20),
    ],
)
def test_whole_numbers_of_more_than_8_bits_are_scaled_by_the_bits_in_use(
    tmp_path, mode, suffix, bits
):
    white = 2**bits - 1
    numbers = np.random.default_rng(0).integers(0, white + 1, (6, 5, 5))
    numbers[3, 0, 0] = white
    for i, each in enumerate(numbers):
        if suffix == "pgm":  # whose 16 bits Pillow reads as 32
            (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
            header = f"P5 5 5 {white}\n".encode()
            (tmp_path / "ab"[i % 2] / f"{i}.pgm").write_bytes(header + each.astype(">u2").tobytes())
        else:
            _write_as(tmp_path / "ab"[i % 2] / f"{i}.{suffix}", each, mode)
    found = _all_pixels(load_image_folder(tmp_path, 5, test_share=0.4))
    assert torch.equal(found, found[:, :1].expand_as(found))
    expected = torch.from_numpy(numbers) / white * 255
    distances = (found[:, None, 0] - expected).abs().flatten(2).amax(2)
    assert distances.amin(1).max() <= 0.5 + 1e-3
    assert sorted(distances.argmin(1).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [
        ("F", 0, 1),
        ("F", -3, 5),
        ("F", 1e-6, 1e-3),
        ("F", 0, 255),
        ("F", 280, 300),
        ("I", -1000, 3000),
    ],
)
def test_floats_and_negative_numbers_are_scaled_from_the_smallest_to_the_largest(
    tmp_path, mode, low, high
):
    shares = np.linspace(0, 1, 6 * 25).reshape(6, 5, 5)
    for i, each in enumerate(shares):
        _write_as(tmp_path / "one" / f"{i}.tif", low + (high - low) * each, mode)
    data = load_image_folder(tmp_path, 5, test_share=0.4)
    found = _all_pixels(data)[:, 0]
    found = found[found[:, 0, 0].argsort()]
    assert (found - torch.from_numpy(shares) * 255).abs().max() <= 0.6
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_all_images_of_a_data_set_have_one_scale(tmp_path, mode):
    for part, start in (("train", 0), ("test", 10)):
        for i in range(10):
            level = 1000 * (start + i + 1)
            _write_as(tmp_path / part / "one" / f"{i}.tif", np.full((4, 6), level), mode)
    _write_as(tmp_path / "train" / "one" / "grey.png", np.full((4, 6), 77), "L")
    data = load_image_folder(tmp_path, 4)
    assert data.x_train[-1].unique().tolist() == [77]  # of 8 bits, which stays as it is
    levels = _all_pixels(data)[:, 0, 0, 0][[*range(10), *range(11, 21)]]
    assert torch.equal(levels, levels.sort().values)
    assert (levels.diff() - levels.diff().mean()).abs().max() <= 1.0
    assert len(levels.unique()) == 20


def test_values_that_are_no_numbers_are_told_with_the_file(tmp_path):
    for i, value in enumerate((0.0, np.nan, 1.0)):
        _write_as(tmp_path / "one" / f"{i}.tif", np.full((4, 4), value), "F")
    with pytest.raises(ValueError, match=r"1\.tif cannot be read as an image .*NaN or infinite"):
        load_image_folder(tmp_path, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    line = np.zeros((4, 4, 4), dtype=np.uint8)  # black, and black where nothing shows
    line[1, :, 3] = 255
    (tmp_path / "one").mkdir()
    for i in range(2):
        image = Image.fromarray(line)
        if mode == "P":
            image = Image.fromarray(line[..., 3] // 255, mode="L").convert("P")
            image.putpalette([0] * 768)
            image.save(tmp_path / "one" / f"{i}.png", transparency=bytes([0, 255]))
        else:
            image.convert(mode).save(tmp_path / "one" / f"{i}.png")
    with Image.open(tmp_path / "one" / "0.png") as image:
        assert image.mode == mode
    data = load_image_folder(tmp_path, 4)
    expected = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    expected[:, 1] = 0
    assert torch.equal(data.x_train[0], expected)


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


PAIRS = [("Train", "Test"), ("TRAIN", "TEST"), ("training_set", "test_set"), ("train", "val")]
PAIRS += [("Training", "Testing"), ("train", "validation"), ("TrainSet", "DevSet")]
PAIRS += [("train2017", "val2017"), ("train_images", "eval_images"), ("traindata", "testdata")]
PAIRS += [("seg_train", "seg_test"), ("train-split", "holdout"), ("Train Data", "Evaluation")]


@pytest.mark.parametrize("names", PAIRS)
def test_parts_are_told_by_their_names(tmp_path, names):
    for start, name in enumerate(names):
        _write_classes(tmp_path / name, {"cat": 2, "dog": 1, "owl": 3}, start=10 * start)
    data = load_image_folder(tmp_path, 4)
    assert data.n_classes == 3
    assert _numbers(data.x_train) == [0, 1, 0, 0, 1, 2]
    assert _numbers(data.x_test) == [10, 11, 10, 10, 11, 12]


@pytest.mark.parametrize("name", ["val", "Validation", "dev", "eval_set"])
def test_beside_a_test_part_a_validation_part_is_left_out(tmp_path, name):
    for start, part in enumerate(("train", "test", name)):
        _write_classes(tmp_path / part, {"a": 1, "b": 1}, start=10 * start)
    data = load_image_folder(tmp_path, 4)
    assert (_numbers(data.x_train), _numbers(data.x_test)) == ([0, 0], [10, 10])


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["train/a", "test/a", "a"],
            "'train' and 'test' alone.*: test, train can be no class beside a",
        ),
        (["Train/a", "cat", "dog"], "Train can be no class beside cat, dog; .* rename"),
        (["TEST", "cat", "dog"], "TEST can be no class beside cat, dog"),
        (["cat", "dog", "validation"], "validation can be no class beside cat, dog"),
        (["eval/cat", "dev/cat"], "both 'train' and 'test'.* got dev, eval"),
        (["Training/a"], "both 'train' and 'test'.* got Training"),
        (["train/a", "training/a", "test/a"], "one folder of .* got train, training and test"),
        (["train/a", "val/a", "dev/a"], "one folder of .* got train and dev, val"),
        (["birds/train/a", "birds/test/a"], "birds has folders for training and test: give that"),
        (["cat/Train", "cat/Val", "dog/Train"], "cat has folders for training and test"),
    ],
)
def test_names_of_parts_that_are_no_pair_are_refused(tmp_path, folders, message):
    for folder in folders:
        _write_classes(tmp_path / folder, {".": 2})
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("train_station", "test_tube", "valley"), ("bullet train", "crash test"), ("devices",)],
)
def test_names_of_classes_are_no_parts(tmp_path, names):
    _write_classes(tmp_path, dict.fromkeys(names, 2))
    assert load_image_folder(tmp_path, 4).n_classes == len(names)


HIDDEN = [".ipynb_checkpoints/0.png", ".git/x/0.png", "._000.png", ".hidden.jpg", "Thumbs.db"]
HIDDEN += ["__MACOSX/000.png", "__MACOSX/a/._000.png", "@eaDir/000.png/SYNOPHOTO_THUMB.jpg"]
HIDDEN += [".DS_Store", "desktop.ini"]


@pytest.mark.parametrize("place", ["", "crow", "train", "train/crow"])
def test_what_is_hidden_is_left_out_of_images_and_digests(tmp_path, place):
    inside = place.startswith("train")
    for part in ("train", "test") if inside else ("",):
        _write_classes(tmp_path / part, {"albatross": 3, "crow": 4})
    before, digest = load_image_folder(tmp_path, 4), folder_digest(tmp_path)
    for name in HIDDEN:
        path = tmp_path / place / name
        if path.suffix in (".png", ".jpg"):
            _write(path, np.full((4, 4, 3), 9))
        else:
            path.write_bytes(b"of the system")
    after = load_image_folder(tmp_path, 4)
    assert folder_digest(tmp_path) == digest
    assert after.n_classes == 2
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(after, name), getattr(before, name))


def test_a_root_below_a_hidden_folder_is_none(tmp_path):
    _write_classes(tmp_path / ".cache" / "birds", BIRDS)
    assert load_image_folder(tmp_path / ".cache" / "birds", 4).n_classes == 3


def test_images_come_in_the_order_of_torchvision(tmp_path):
    for name in ("b", "a/2", "a/10", "a", "a/2/x", "B", "a b"):
        _write_classes(tmp_path / name, {".": 3})
    found = class_folders(tmp_path)
    expected = ImageFolder(str(tmp_path))
    assert found.classes == expected.classes
    assert [(str(path), label) for path, label in found.files] == expected.samples


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
