import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import resize

from avalanche_mgem.streams import ArrayData
from avalanche_mgem.streams.vision.images import as_rgb, resize_images, unit_range


def test_uint8_is_scaled_by_the_same_division_everywhere():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(unit_range(pixels), pixels.float() / 255)
    values = torch.rand(3)
    assert unit_range(values) is values


@given(size=st.integers(1, 12), height=st.integers(1, 9), width=st.integers(1, 9))
def test_resizing_keeps_the_range_and_a_constant(size, height, width):
    x = torch.rand(3, 2, height, width)
    resized = resize_images(x, size)
    assert resized.shape == (3, 2, size, size)
    assert resized.dtype == torch.float32
    assert x.min() - 1e-6 <= resized.min() <= resized.max() <= x.max() + 1e-6
    flat = resize_images(torch.full((1, 1, height, width), 7, dtype=torch.uint8), size)
    assert torch.equal(flat, torch.full((1, 1, size, size), 7, dtype=torch.uint8))


@pytest.mark.parametrize("size", [3, 17])
def test_uint8_is_rounded_and_floats_are_torchvisions(size):
    pixels = torch.randint(0, 256, (5, 3, 8, 8)).to(torch.uint8)
    values = resize(pixels.float(), [size, size], antialias=True)
    assert torch.equal(resize_images(pixels.float(), size), values)
    assert (resize_images(pixels, size).float() - values).abs().max() <= 0.5 + 1e-4


def test_many_images_are_resized_as_one_is(monkeypatch):
    x = torch.rand(10, 1, 6, 6)
    whole = resize_images(x, 4)
    monkeypatch.setattr("avalanche_mgem.streams.vision.images._CHUNK", 3)
    assert torch.equal(resize_images(x, 4), whole)


def test_the_size_it_has_and_none_change_nothing(digits):
    assert resize_images(digits.x_train, 8) is digits.x_train
    assert digits.resized(None) is digits


def test_grey_is_repeated_and_rgb_stays():
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(as_rgb(grey), torch.cat([grey] * 3, dim=1))
    assert torch.equal(as_rgb(colour), colour)


@pytest.mark.parametrize("size", [0, 1.5, "8", True])
def test_a_size_must_be_a_whole_number(digits, size):
    with pytest.raises(ValueError, match="image_size must be a whole number >= 1"):
        digits.resized(size)


def test_flat_samples_have_no_size():
    data = ArrayData("flat", torch.rand(4, 7), torch.arange(4), torch.rand(2, 7), torch.arange(2))
    with pytest.raises(ValueError, match=r"image_size=8 needs images .* shape \(7,\)"):
        data.resized(8)
