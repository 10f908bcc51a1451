import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_mgem.streams import load_data
from avalanche_mgem.streams.npz import _numbered


@pytest.mark.parametrize("shape", [(10,), (5, 2), (2, 1, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_every_layout_and_dtype_holds_the_values(arrays, write_npz, shape, dtype):
    stored = {key: array.copy() for key, array in arrays.items()}
    for key in ("x_train", "x_test"):
        stored[key] = (arrays[key] * 100).astype(dtype).reshape(-1, *shape)
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
