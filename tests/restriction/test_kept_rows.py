"""Exactly so many rows are masked, the quietest, and magnitudes are those of a loop over tokens."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_mgem.restriction.rows import (
    kept_rows,
    kept_rows_of_layers,
    kept_rows_of_many,
    masked_positions,
    n_masked,
    row_magnitudes,
    token_magnitudes,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Hundredths, as users write them, and anything else.
FRACTIONS = st.one_of(
    st.integers(0, 99).map(lambda hundredths: hundredths / 100),
    st.floats(0.0, 1.0, exclude_max=True),
)


@st.composite
def score_rows(draw, max_layers=1):
    """Scores [L, n] with many ties, zeros, infinities and negative numbers among them."""
    shape = draw(st.integers(1, max_layers)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = torch.randint(-levels, levels + 1, shape, generator=generator) / levels
    if draw(st.booleans()):
        scores[torch.rand(shape, generator=generator) < 0.2] = math.inf
    return scores.to(draw(st.sampled_from(DTYPES)))


def kept_by_a_loop(scores, mask_fraction):
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    kept = order[: len(scores) - math.floor(mask_fraction * len(scores) + 1e-9)]
    return [i in kept for i in range(len(scores))]


@given(st.integers(0, 99), st.integers(1, 5000))
def test_hundredths_are_masked_as_in_exact_arithmetic(hundredths, n):
    assert n_masked(hundredths / 100, n) == math.floor(Fraction(hundredths, 100) * n)


def test_a_product_that_floating_point_has_too_small():
    assert 0.7 * 90 < 63
    assert n_masked(0.7, 90) == 63


def test_the_released_code_masks_a_row_more_where_the_width_ends_in_4_or_7():
    """It masks what is below the 0.7-quantile of the scores, which lies at 0.7 (n - 1)."""
    for n in range(2, 1100):
        scores = torch.arange(n, dtype=torch.float64)
        theirs = int((scores < torch.quantile(scores, 0.7)).sum())
        assert theirs == math.ceil(Fraction(7, 10) * (n - 1))
        assert theirs - n_masked(0.7, n) == (n % 10 in (4, 7))
    assert n_masked(0.7, 1024) == 716
    tied = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0])
    assert (tied >= torch.quantile(tied, 0.7)).tolist() == [False, True, True, True, True]
    assert kept_rows(tied, 0.7).tolist() == [False, True, True, False, False]


@given(score_rows(), FRACTIONS)
def test_the_loudest_rows_are_kept_and_of_equal_ones_the_first(scores, mask_fraction):
    kept = kept_rows(scores[0], mask_fraction)
    assert kept.dtype == torch.bool
    assert (~kept).sum() == n_masked(mask_fraction, scores.shape[1])
    assert kept.tolist() == kept_by_a_loop(scores[0].float(), mask_fraction)


@given(score_rows(max_layers=5), FRACTIONS)
def test_many_at_once_are_one_by_one(scores, mask_fraction):
    alone = [kept_rows(row, mask_fraction).tolist() for row in scores]
    assert kept_rows_of_many(scores, mask_fraction).tolist() == alone


@given(st.lists(score_rows(), max_size=6), FRACTIONS)
def test_layers_of_any_width_are_one_by_one(scores, mask_fraction):
    layers = {f"layer{i}": rows[0] for i, rows in enumerate(scores)}
    kept = kept_rows_of_layers(layers, mask_fraction)
    assert list(kept) == list(layers)
    for name, own in layers.items():
        assert torch.equal(kept[name], kept_rows(own, mask_fraction))
    for name, positions in masked_positions(kept).items():
        assert torch.equal(positions, (~kept[name]).nonzero()[:, 0])


def test_what_is_nothing_is_ordered_by_position():
    assert kept_rows(torch.zeros(10), 0.7).tolist() == [True] * 3 + [False] * 7
    assert (
        kept_rows(torch.tensor([0.0, -0.0, 0.0, -0.0]), 0.5).tolist() == [True, True] + [False] * 2
    )


@pytest.mark.parametrize("fraction", [1, 1.0, -0.1, math.nan, math.inf, "0.7", None, True])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="mask_fraction must be a"):
        kept_rows(torch.ones(3), fraction)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused_where_a_row_is_to_be_masked(dtype):
    scores = torch.tensor([1.0, math.nan], dtype=dtype)
    with pytest.raises(FloatingPointError, match="NaN"):
        kept_rows(scores, 0.5)
    assert kept_rows(scores, 0.0).tolist() == [True, True]


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"scores must be \[n\], .* got .* \(2, 3\)"):
        kept_rows(torch.ones(2, 3), 0.5)
    with pytest.raises(ValueError, match=r"scores must be \[L, n\], .* got .* \(3,\)"):
        kept_rows_of_many(torch.ones(3), 0.5)


@st.composite
def outputs(draw):
    """An output, the place of its units, and a mask of the leading dimensions of its tokens."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    channel_dim = draw(st.integers(0, len(shape)))
    units = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    output = torch.randn(*shape, units, generator=generator)
    output[torch.rand(output.shape, generator=generator) < 0.3] = 0.0
    masked = draw(st.none() | st.integers(1, len(shape))) if shape else None
    mask = None if masked is None else torch.randint(2, shape[:masked], generator=generator)
    if draw(st.booleans()):  # strides of no contiguous tensor
        output = output.flip(-1).transpose(0, -1).contiguous().transpose(0, -1)
    output = output.movedim(-1, channel_dim).to(draw(st.sampled_from(DTYPES)))
    return output, channel_dim - draw(st.sampled_from([0, output.ndim])), mask


def magnitudes_by_a_loop(output, channel_dim, mask, normalize):
    units_last = output.movedim(channel_dim, -1).double()
    if mask is not None:
        mask = mask.reshape(*mask.shape, *[1] * (units_last.ndim - 1 - mask.ndim))
        mask = mask.expand(units_last.shape[:-1]).reshape(-1)
    total, count = torch.zeros(units_last.shape[-1], dtype=torch.float64), 0
    for index, token in enumerate(units_last.reshape(-1, units_last.shape[-1])):
        if mask is None or mask[index]:
            size, count = token.abs(), count + 1
            loud = normalize == "token" and size.sum() > 0
            total += size / size.sum() if loud else size
    return total, count


@given(outputs(), st.sampled_from(["none", "token"]))
def test_magnitudes_are_those_of_a_loop_over_tokens(case, normalize):
    output, channel_dim, mask = case
    total, count = token_magnitudes(
        output, normalize=normalize, weights=mask, channel_dim=channel_dim
    )
    expected, expected_count = magnitudes_by_a_loop(output, channel_dim, mask, normalize)
    assert total.dtype == torch.float32
    assert int(count) == expected_count
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", ["none", "token"])
def test_many_tokens_are_summed_in_pieces(normalize):
    output = torch.randn(3, 70, 1000)
    mask = torch.rand(3, 70) < 0.5
    total, count = token_magnitudes(output, normalize=normalize, weights=mask)
    size = output[mask].abs()
    size = size / size.sum(1, keepdim=True) if normalize == "token" else size
    torch.testing.assert_close(total, size.sum(0), rtol=1e-5, atol=0)
    assert int(count) == mask.sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    total, count = token_magnitudes(torch.full((70_000, 2), 1.5, dtype=dtype))
    assert total.tolist() == [105_000.0] * 2  # beyond float16, and odd to bfloat16
    assert count == 70_000


def test_padding_does_not_count_whatever_it_holds():
    output = torch.tensor([[[1.0, -2.0], [math.nan, math.inf]]])
    for normalize, expected in (("none", [1.0, 2.0]), ("token", [1 / 3, 2 / 3])):
        total, count = token_magnitudes(output, normalize=normalize, weights=torch.tensor([[1, 0]]))
        torch.testing.assert_close(total, torch.tensor(expected))
        assert int(count) == 1


def test_no_graph_is_held():
    output = torch.randn(4, 3, requires_grad=True) * 2
    assert not token_magnitudes(output, normalize="token")[0].requires_grad


def test_bad_arguments_of_magnitudes():
    with pytest.raises(ValueError, match="normalize: unknown 'tokens'; did you mean 'token'"):
        token_magnitudes(torch.ones(2, 2), normalize="tokens")
    with pytest.raises(ValueError, match=r"weights must have .* \(2, 5\), got \(2, 4\)"):
        token_magnitudes(torch.ones(2, 5, 3), weights=torch.ones(2, 4))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1), st.sampled_from(DTYPES))
def test_row_magnitudes_are_means(n_rows, width, dim, dtype):
    rows = torch.randn(n_rows, width).to(dtype)
    scores = row_magnitudes(rows.movedim(0, dim), dim)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), rows.double().abs().mean(1), rtol=1e-5, atol=1e-6)
