import numpy as np
import pytest
import torch

from avalanche_mgem.streams import ArrayData, load_data


def _tensors(**changes):
    valid = {
        "x_train": torch.rand(6, 4),
        "y_train": torch.tensor([0, 1, 2, 0, 1, 2]),
        "x_test": torch.rand(3, 4),
        "y_test": torch.tensor([0, 1, 2]),
    }
    return {**valid, **changes}


def test_the_digits_are_all_there_once_and_scaled(digits):
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert digits.sample_shape == (1, 8, 8)
    assert digits.n_classes == 10
    assert digits.x_train.dtype == torch.float32
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)


def test_the_digits_are_split_three_to_one_in_every_class(digits):
    for label in range(10):
        train, test = (int((y == label).sum()) for y in (digits.y_train, digits.y_test))
        assert test == (train + test) // 4


def test_the_digits_are_split_alike_every_time(digits):
    again = load_data("digits")
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(again, name), getattr(digits, name))


def test_array_data_tells_classes_and_shape():
    data = ArrayData("mine", **_tensors())
    assert (data.n_classes, data.sample_shape) == (3, (4,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": torch.rand(6, 4).double()},
            r"x_train must be float32 or uint8, got torch\.float64",
        ),
        ({"x_test": torch.rand(3, 4, 5)}, r"x_test must have shape .* got \(3, 4, 5\)"),
        ({"x_train": torch.rand(6, 0)}, r"x_train must have shape .* got \(6, 0\)"),
        ({"y_train": torch.zeros(6)}, r"y_train must be int64 \[N\], got torch\.float32"),
        ({"y_test": torch.zeros(3, 1, dtype=torch.int64)}, r"y_test must be int64 .* \(3, 1\)"),
        ({"y_test": torch.tensor([0, 1])}, "x_test and y_test .* 3 samples and 2 labels"),
        ({"x_test": torch.rand(3, 5)}, r"x_train and x_test .* \(4,\) and \(5,\)"),
        ({"y_train": torch.tensor([0, 2, 2, 0, 2, 2])}, r"y_train .* got \[0, 2\]"),
        ({"y_train": torch.tensor([-1, 0, 1, 2, 0, 1])}, r"y_train .* got \[-1, 0, 1, 2\]"),
        ({"y_test": torch.tensor([0, 1, 3])}, r"y_test .* \[3\]"),
    ],
)
def test_array_data_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        ArrayData("mine", **_tensors(**changes))


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(ValueError, match=r"source must be .* got 'digit'; did you mean 'digits'"):
        load_data("digit")


def test_a_relative_npz_is_found_as_given_or_inside_data_root(
    arrays, write_npz, tmp_path, monkeypatch
):
    write_npz(arrays, "mine.npz")
    assert load_data("mine.npz", data_root=tmp_path).name == "mine"
    assert load_data(str(tmp_path / "mine.npz")).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert load_data("mine.npz").name == "mine"
    assert load_data("mine.npz", data_root="elsewhere").name == "mine"


def test_an_npz_that_is_nowhere_names_both_places(tmp_path):
    with pytest.raises(
        ValueError, match=r"source='no\.npz' .* neither at no\.npz nor at .*no\.npz"
    ):
        load_data("no.npz", data_root=tmp_path)
    with pytest.raises(ValueError, match=r"source must be an \.npz file that exists.*no\.npz"):
        load_data(str(tmp_path / "no.npz"))


def test_an_error_in_an_npz_names_the_file(arrays, write_npz):
    path = write_npz({**arrays, "x_test": np.zeros((3, 9))})
    with pytest.raises(ValueError, match=r"data\.npz: x_train and x_test .* \(10,\) and \(9,\)"):
        load_data(str(path))
