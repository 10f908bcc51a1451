"""What is taken from long vectors: in float32 by runs, where that is enough."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_mgem.restriction import project
from avalanche_mgem.restriction.block import Block

LONG = 9_001  # more than is multiplied in float64, in several runs for more than 28 rows


def problem(n_rows, size=LONG, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_rows, size, generator=generator)
    gradient = torch.randn(size, generator=generator)
    return gradient * scale, rows * scale


def lengths(a):
    return np.linalg.norm(a, axis=-1)


@given(
    n_rows=st.integers(1, 40),
    edges=st.sets(st.integers(0, LONG), min_size=2, max_size=6),
    scale=st.sampled_from([1e-15, 1e-8, 1.0, 1e8, 1e15]),
)
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_float64_to_the_sixth_digit(n_rows, edges, scale):
    gradient, rows = problem(n_rows, scale=scale)
    edges = sorted(edges)
    module = [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    at = np.concatenate([np.arange(part.start, part.stop) for part in module])
    g, a = gradient.double().numpy()[at], rows.double().numpy()[:, at]
    block = Block(gradient, rows, module)
    assert (abs(block.dots() - a @ g) <= 1e-6 * lengths(a) * lengths(g)).all()
    every, some = np.arange(n_rows), np.arange(n_rows)[::2]
    room = 1e-6 * np.outer(lengths(a), lengths(a))
    assert (abs(block.gram(every, every) - a @ a.T) <= room).all()
    assert (
        abs(block.gram(some[-1:], some) - (a @ a.T)[some[-1:]][:, some]) <= room[0, 0] * 2
    ).all()
    np.testing.assert_allclose(block.squared_lengths(some), (a[some] ** 2).sum(1), rtol=1e-6)


@pytest.mark.parametrize("n_rows", [1, 7, 40])
def test_a_move_is_the_sum_and_what_it_tells_is_true(n_rows):
    gradient, rows = problem(n_rows)
    dual = np.linspace(0, 1, n_rows)
    module = [slice(10, 3_000), slice(3_500, LONG)]
    out = gradient.clone()
    block = Block(gradient, rows, module)
    slopes, products = block.move(dual, out), block.products(out)
    moved = gradient.double() + torch.from_numpy(dual) @ rows.double()
    at = np.r_[10:3_000, 3_500:LONG]
    still = np.setdiff1d(np.arange(LONG), at)
    assert torch.equal(out[still], gradient[still])
    np.testing.assert_allclose(out[at], moved[at], rtol=0, atol=1e-5)
    g, z, a = (value.double().numpy()[..., at] for value in (gradient, out, rows))
    np.testing.assert_allclose(slopes, a @ z, atol=1e-6 * float(lengths(a).max() * lengths(z)))
    expected = [g @ g, z @ z, (z - g) @ (z - g), g @ z]
    np.testing.assert_allclose(products, expected, rtol=0, atol=1e-6 * products.max())


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e35])
def test_numbers_that_float32_cannot_multiply(scale):
    """Squares of 1e-60 and of 1e70 are beyond float32, and the projection is not."""
    gradient, rows = problem(3)
    gradient = gradient - rows.sum(0)
    plain = project(gradient, rows).gradient
    scaled = project(gradient * 1e-3, rows * scale).gradient
    torch.testing.assert_close(scaled * 1e3, plain, rtol=1e-4, atol=1e-5)


def test_short_and_long_rows_side_by_side():
    gradient, rows = problem(4)
    gradient = gradient - rows.sum(0)
    plain = project(gradient, rows)
    lengths = torch.tensor([1e-25, 1.0, 1e-10, 1e20])
    projection = project(gradient, rows * lengths[:, None])
    assert projection.violated_rows.all()
    torch.testing.assert_close(projection.gradient, plain.gradient, rtol=1e-4, atol=1e-5)


def test_products_keep_their_digits_where_torch_was_told_to_drop_some():
    gradient, rows = problem(6)
    expected = project(gradient, rows, memory_strength=0.3).gradient
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        told = project(gradient, rows, memory_strength=0.3).gradient
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = project(gradient, rows, memory_strength=0.3).gradient
    assert torch.equal(inside, expected)


def test_a_result_beyond_float32_is_an_error_and_not_infinity():
    gradient = torch.full((LONG,), -1.0)
    rows = torch.full((1, LONG), 1e30)
    for dtype, strength in ((torch.float32, 1e20), (torch.float64, 1e200)):
        with pytest.raises(FloatingPointError, match="too large"):
            project(gradient.to(dtype), rows.to(dtype), memory_strength=strength)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_multiplied_in_float64(dtype):
    gradient, rows = problem(5)
    gradient = (gradient - rows.sum(0)).to(dtype)
    wide = project(gradient.double(), rows.to(dtype).double()).gradient
    narrow = project(gradient, rows.to(dtype)).gradient
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow, wide.to(dtype))


def test_a_gradient_of_another_precision_is_refused():
    gradient, rows = problem(2)
    with pytest.raises(ValueError, match="rows must be of the gradient's dtype"):
        project(gradient.double(), rows)


@pytest.mark.parametrize("scale", [1e-20, 1e-24])
def test_what_a_tiny_projection_tells_of_itself_is_true(scale):
    gradient, rows = problem(3)
    gradient = gradient - 0.02 * rows.sum(0)
    plain, tiny = project(gradient, rows), project(gradient * scale, rows)
    assert tiny.relative_change == pytest.approx(plain.relative_change, rel=1e-3)
    assert tiny.cosine == pytest.approx(plain.cosine, abs=1e-5)
