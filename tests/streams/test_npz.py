import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from avalanche_mgem.streams import load_data
from avalanche_mgem.streams.npz import _numbered, channel_axis


@pytest.mark.parametrize("shape", [(10,), (5, 2), (2, 1, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_every_layout_and_dtype_holds_the_values(arrays, write_npz, shape, dtype):
    stored = {key: array.copy() for key, array in arrays.items()}
    for key in ("x_train", "x_test"):
        scale = 100 if dtype == np.uint8 else 5
        stored[key] = (arrays[key] * scale).astype(dtype).reshape(-1, *shape)
    data = load_data(str(write_npz(stored)))

    expected = torch.from_numpy(stored["x_train"].astype(np.float32))
    if dtype == np.uint8:
        expected = expected / 255
    if len(shape) == 2:
        expected = expected[:, None]
    if len(shape) == 3:
        expected = torch.stack([expected[..., channel] for channel in range(shape[2])], dim=1)
    assert data.x_train.dtype == torch.float32
    assert torch.equal(data.x_train, expected)
    assert data.x_test.shape[1:] == expected.shape[1:]


CHANNELS_LAST = [(32, 32, 3), (28, 28, 1), (5, 7, 3), (4, 4, 3), (4, 4, 1), (9, 9, 200)]
CHANNELS_LAST += [(32, 32, 4), (30, 40, 4), (32, 32, 12), (2, 1, 5)]
CHANNELS_FIRST = [(3, 32, 32), (1, 28, 28), (3, 5, 7), (3, 4, 4), (4, 32, 32), (4, 30, 40)]
CHANNELS_FIRST += [(12, 32, 32), (2, 64, 64), (1, 2, 5)]


@pytest.mark.parametrize("shape", CHANNELS_LAST + CHANNELS_FIRST)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_axis_of_the_channels_is_told_by_the_shape(arrays, write_npz, shape, dtype):
    random = np.random.default_rng(0)
    for key, count in (("x_train", 6), ("x_test", 3)):
        arrays[key] = (200 * random.random((count, *shape))).astype(dtype)
        arrays[key] = arrays[key] if dtype == np.uint8 else arrays[key] / 200
    data = load_data(str(write_npz(arrays)), keep_uint8=True)
    for found, key in ((data.x_train, "x_train"), (data.x_test, "x_test")):
        last = shape in CHANNELS_LAST
        expected = np.transpose(arrays[key], (0, 3, 1, 2)) if last else arrays[key]
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    "shape",
    [(3, 32, 3), (1, 28, 1), (3, 3, 1), (1, 1, 3), (1, 5, 3), (8, 8, 8), (4, 9, 4), (12, 30, 40)],
)
def test_a_shape_with_two_readings_is_refused_with_both(arrays, write_npz, shape):
    first, middle, last = shape
    for key, count in (("x_train", 6), ("x_test", 3)):
        arrays[key] = np.zeros((count, *shape), np.uint8)
    readings = rf"\({last} of {first} x {middle} pixels\).*\({first} of {middle} x {last}\)"
    with pytest.raises(ValueError, match=rf"x_train has shape \(6, .* {readings}"):
        load_data(str(write_npz(arrays)))


@given(shape=st.tuples(*[st.integers(1, 40)] * 3))
def test_the_mirrored_shape_has_the_mirrored_reading(shape):
    first, middle, last = shape

    def reading(*sizes):
        try:
            return channel_axis((9, *sizes))
        except ValueError:
            return None

    found, mirrored = reading(first, middle, last), reading(last, middle, first)
    if found == 1:
        assert mirrored == 3
    if first in (1, 3) or last in (1, 3):
        both = first in (1, 3) and last in (1, 3)
        assert found == (None if both else 1 if first in (1, 3) else 3)


_PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.float64)


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (_PIXELS, "from 0 to 255, .*: .* divide them by 255, or store them as uint8"),
        (_PIXELS.reshape(6, 64), "from 0 to 255, .* divide them by 255"),
        (_PIXELS[..., None] * (_PIXELS > 200)[..., None], "divide them by 255"),
        (np.full((6, 8, 8), 255.0), "from 255 to 255"),
        (_PIXELS * 16, r"from 0 to 4080, .* such as 4095"),
        (_PIXELS.reshape(6, 1, 8, 8) * 257, r"such as 65535"),
        (_PIXELS - 1000, "from -1000 to -745, .* subtract their mean and divide by their standard"),
        (_PIXELS * 1e4, "subtract their mean"),
        (np.full((6, 8, 8), 3e38), "subtract their mean"),
    ],
)
@pytest.mark.parametrize("key", ["x_train", "x_test"])
def test_images_of_unscaled_floats_are_refused_with_how_to_scale(
    arrays, write_npz, values, advice, key
):
    for each in ("x_train", "x_test"):
        arrays[each] = values if each == key else values / np.abs(values).max()
    arrays["y_test"] = arrays["y_train"]
    with pytest.raises(ValueError, match=rf"data\.npz: {key} holds floats .*{advice}"):
        load_data(str(write_npz(arrays)))


def test_scaled_and_standardised_floats_and_large_vectors_are_taken(arrays, write_npz):
    digits = load_digits().images
    standardised = (digits - digits.mean(0)) / (digits.std(0) + 1e-9)
    assert np.abs(standardised).max() > 40  # corner pixels, which are hardly ever lit
    lengths = np.random.default_rng(0).normal(size=(1797, 5)) * 1e4
    for values in (digits / 16, digits, standardised, lengths, np.full((1797, 2, 2), -10.0)):
        arrays["x_train"], arrays["y_train"] = values, np.arange(1797) % 10
        arrays["x_test"], arrays["y_test"] = values, np.arange(1797) % 10
        found = load_data(str(write_npz(arrays))).x_train.reshape(-1)
        assert torch.equal(found, torch.from_numpy(values.astype(np.float32).ravel()))


@pytest.mark.parametrize("shape", [(10,), (2, 5)])
def test_bits_as_uint8_would_be_all_but_black(arrays, write_npz, shape):
    bits = np.arange(60).reshape(6, *shape) % 2
    arrays["x_train"] = bits.astype(np.uint8)
    arrays["x_test"] = bits[:3].astype(np.uint8)
    with pytest.raises(ValueError, match=r"x_train is uint8, .* but holds 0 and 1 alone: store"):
        load_data(str(write_npz(arrays)))
    arrays["x_train"], arrays["x_test"] = (255 * bits).astype(np.uint8), bits[:3].astype(float)
    assert load_data(str(write_npz(arrays))).x_train.max() == 1


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (np.arange(60), r"int64 of 0 to 59: store pixels as x\.astype\(numpy\.uint8\)"),
        (np.arange(60, dtype=np.uint16) * 60, r"uint16 of 0 to 3540: store .*float32\) / 4095"),
        (np.arange(60, dtype=np.uint16) * 1000, r"uint16 of 0 to 59000: store .*float32\) / 65535"),
        (np.arange(60) - 30, r"int64 of -30 to 29: store .*float32\), scaled to about \[-1, 1\]"),
        (np.arange(60) > 30, r"bool: store x\.astype\(numpy\.float32\)"),
        (np.arange(60) * 1j, "complex128"),
    ],
)
def test_a_dtype_that_is_not_taken_is_told_with_what_would_be(arrays, write_npz, values, advice):
    arrays["x_train"] = values.reshape(6, 10)
    with pytest.raises(ValueError, match=f"x_train must be uint8 or float, got dtype {advice}$"):
        load_data(str(write_npz(arrays)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_of_every_integer_dtype_and_shape(arrays, write_npz, dtype, shape):
    for key in ("y_train", "y_test"):
        arrays[key] = (arrays[key] * 7 + 3).astype(dtype).reshape(shape)
    data = load_data(str(write_npz(arrays)))
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.y_test.tolist() == [2, 1, 0]


@given(labels=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1))
@settings(deadline=None)
def test_labels_are_numbered_in_their_order(labels):
    numbers, _ = _numbered(labels, labels[:1])
    assert sorted(set(numbers.tolist())) == list(range(len(set(labels))))
    by_number = sorted(zip(numbers.tolist(), labels, strict=True))
    assert [label for _, label in by_number] == sorted(labels)


def test_keys_that_are_not_needed_are_ignored(arrays, write_npz):
    extra = np.array(["of", "another", "kind"])
    assert load_data(str(write_npz({**arrays, "names": extra}))).n_classes == 3


def _spoilt(**changes):
    return {key: np.asarray(value) for key, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_spoilt(x_train=np.zeros((6, 10), int)), "x_train must be uint8 or float, got dtype int"),
        (_spoilt(x_test=np.zeros((3, 10), bool)), "x_test must be uint8 or float, got dtype bool"),
        (_spoilt(x_train=np.zeros(6)), r"x_train must have shape .* got \(6,\)"),
        (_spoilt(x_test=np.zeros((3, 1, 1, 1, 1))), r"x_test must have shape .* \(3, 1, 1, 1, 1\)"),
        (_spoilt(x_train=np.zeros((0, 10))), r"x_train .* not be empty, got \(0, 10\)"),
        (_spoilt(x_test=np.full((3, 10), np.nan)), "x_test must be finite"),
        (_spoilt(x_train=np.full((6, 10), 1e300)), "x_train must be finite as float32"),
        (_spoilt(y_train=np.zeros(6)), "y_train must be integers, got dtype float64"),
        (_spoilt(y_test=np.zeros((3, 2), int)), r"y_test must have shape .* got \(3, 2\)"),
        (_spoilt(y_test=np.int64(3)), r"y_test must have shape .* got \(\)"),
        (_spoilt(y_train=np.zeros(0, int)), r"y_train .* not be empty, got \(0,\)"),
        (
            _spoilt(y_train=np.zeros(5, int), y_test=np.zeros(3, int)),
            "x_train and y_train .* 6 .* 5",
        ),
        (_spoilt(y_test=np.array([0, 1, 9])), r"y_test has labels that y_train .* \[9\]"),
    ],
)
def test_an_array_that_does_not_fit_is_named(arrays, write_npz, changes, message):
    path = write_npz({**arrays, **changes})
    with pytest.raises(ValueError, match=rf"data\.npz: {message}"):
        load_data(str(path))


def test_a_missing_key_is_named_with_those_there_are(arrays, write_npz):
    del arrays["y_test"]
    with pytest.raises(ValueError, match="lacks y_test and has x_test, x_train, y_train"):
        load_data(str(write_npz(arrays)))


def test_of_many_other_keys_some_are_named(write_npz):
    path = write_npz({f"array_{i:03}": np.zeros(1) for i in range(200)})
    with pytest.raises(ValueError, match=r"and has array_000, .*, array_009, \.\.\.$"):
        load_data(str(path))


def test_objects_are_not_unpickled(arrays, write_npz):
    arrays["x_train"] = np.array([{"a": 1}] * 6, dtype=object)
    with pytest.raises(ValueError, match=r"source must be a readable \.npz file, .*data\.npz"):
        load_data(str(write_npz(arrays)))


def _truncated(contents):
    return contents[: len(contents) // 2]


def _overwritten(contents):
    return contents[:300] + bytes(200) + contents[500:]


@pytest.mark.parametrize("spoil", [_truncated, _overwritten, lambda _: b"", lambda _: b"text"])
def test_a_file_that_is_not_an_npz_is_refused(arrays, write_npz, spoil):
    path = write_npz(arrays)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"source must be a readable \.npz file, .*data\.npz"):
        load_data(str(path))


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"source .*data\.npz is not: it is a single array"):
        load_data(str(path))
