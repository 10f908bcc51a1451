"""Which rows of a layer may move: those of the output units that speak up.

For a linear layer y = xW' + b, with W [out, in], MIGU (arXiv 2406.17245, eq. 3-5) takes

    n_i = mean over all tokens of |y_i|

and keeps the gradient of the rows of W with the largest n_i; a fraction T of the rows is masked.
The paper leaves open what becomes of ties and of fractions of a row: here exactly
floor(T * out + 1e-9) rows are masked, and among equals the lowest index is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from numbers import Integral
from typing import Literal, TypeVar

import torch
from torch import Tensor

from avalanche_mgem.arguments import bounded_int, finite, one_of, real_tensor

Normalize = Literal["none", "token"]
NORMALIZE = ("none", "token")

Key = TypeVar("Key")

# The score of rows that may not move in any case: those of an expert that saw no token. All other
# scores are >= 0.
UNSEEN = -1.0

# Elements of which the magnitudes are held at a time. On a CPU a sum over what is still in the
# cache takes half the time; an accelerator wants one launch.
_CACHED = 2**17
_MANY = 2**53  # whole numbers below are floating-point numbers


def n_masked(mask_fraction: float, n_rows: int) -> int:
    """Return how many of n_rows are masked, floor(mask_fraction * n_rows + 1e-9).

    The 1e-9 is for products such as 0.7 * 90, which is 62.99.. in floating point.

    Raises:
        ValueError: the mask fraction is no number in [0, 1), n_rows no whole number >= 0.
    """
    usual = type(mask_fraction) is float and type(n_rows) is int
    if usual and 0 <= mask_fraction < 1 <= n_rows < _MANY:
        return math.floor(mask_fraction * n_rows + 1e-9)  # every step asks
    bounded_int("n_rows", n_rows, minimum=0)
    fraction = finite("mask_fraction", mask_fraction, minimum=0.0)
    if fraction >= 1.0:
        raise ValueError(f"mask_fraction must be a number in [0, 1), got {mask_fraction!r}")
    return math.floor(fraction * n_rows + 1e-9)


def kept_rows(scores: Tensor, mask_fraction: float) -> Tensor:
    """Return which rows may move, bool [n]: all but `n_masked` of them, the largest scores.

    Args:
        scores: of the rows, [n], any real dtype; compared in float32.
        mask_fraction: T, the fraction of the rows that is masked, in [0, 1).

    Raises:
        ValueError: a mask fraction out of range, scores that are no vector.
        FloatingPointError: a score is NaN, and some row is to be masked.
    """
    real_tensor("scores", scores, shape="[n]")
    return kept_rows_of_many(scores[None], mask_fraction)[0]


def kept_rows_of_many(scores: Tensor, mask_fraction: float) -> Tensor:
    """Return `kept_rows` of L layers of one width, bool [L, n], from scores [L, n]."""
    real_tensor("scores", scores, shape="[L, n]")
    return _largest(scores, mask_fraction, check=True)


def refuse_nan(scores: Mapping[Key, Tensor], mask_fraction: float) -> None:
    """Raise FloatingPointError if a score is NaN of a layer of which some row is to be masked.

    An accelerator is waited for once.
    """
    groups = [torch.stack([scores[key] for key in keys]) for keys in _of_one_width(scores)]
    found = [each.isnan().any() for each in groups if n_masked(mask_fraction, each.shape[-1]) > 0]
    if found and bool(torch.stack([flag.to(found[0].device) for flag in found]).any()):
        raise FloatingPointError("a score is NaN: no row is larger than another")


def _largest(scores: Tensor, mask_fraction: float, *, check: bool) -> Tensor:
    """`kept_rows_of_many` of scores [L, n]; check: refuse NaN, else what it makes is not said."""
    n = scores.shape[1]
    masked = n_masked(mask_fraction, n)
    if masked == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    scores = scores.detach().float()
    if masked < n and scores.device.type == "cpu":
        # To select takes a fifth of the time of sorting, but to look whether there is a tie makes
        # the host wait for an accelerator. With a tie or a NaN there are fewer in some layer.
        kept = scores > scores.kthvalue(masked, dim=1, keepdim=True).values
        if int(torch.count_nonzero(kept)) == len(scores) * (n - masked):
            return kept
    if check:
        refuse_nan({0: scores}, mask_fraction)
    # A stable sort, so that ties fall the same way on every device and on every rank.
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    kept = torch.ones_like(scores, dtype=torch.bool)
    return kept.scatter_(1, order[:, n - masked :], False)


def kept_rows_of_layers(
    scores: Mapping[Key, Tensor], mask_fraction: float, *, check: bool = True
) -> dict[Key, Tensor]:
    """Return `kept_rows` of every layer, bool of the shape of its scores.

    Layers of one width are sorted together. Of scores [*blocks, n], as those of experts, each
    block's rows are chosen by themselves, and where any are masked at all, none is kept that is
    `UNSEEN`.

    check: False: no accelerator is waited for, and there scores that are NaN are no error; say
    later, by `refuse_nan`, that they are.
    """
    on_cpu = all(each.device.type == "cpu" for each in scores.values())
    if check and not on_cpu:
        refuse_nan(scores, mask_fraction)  # all at once
    kept: dict[Key, Tensor] = {}
    for keys in _of_one_width(scores):
        stacked = torch.stack([scores[key].float() for key in keys])
        flat = _largest(stacked.flatten(0, -2), mask_fraction, check=on_cpu)
        flat = flat.view_as(stacked)
        if stacked.ndim > 2 and mask_fraction > 0:
            flat = flat & (stacked > UNSEEN)
        kept.update(zip(keys, flat, strict=True))
    return {key: kept[key] for key in scores}


def masked_positions(kept: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Return the positions of the rows that may not move, ascending, int64 [masked] each.

    An accelerator is waited for once.
    """
    groups = [(keys, ~torch.stack([kept[key] for key in keys])) for keys in _of_one_width(kept)]
    if not groups:
        return {}
    device = groups[0][1].device
    counts = torch.cat([masked.sum(1).to(device) for _, masked in groups]).tolist()
    positions: dict[Key, Tensor] = {}
    for keys, masked in groups:
        own, counts = counts[: len(keys)], counts[len(keys) :]
        positions.update(zip(keys, _positions(masked, own), strict=True))
    return {key: positions[key] for key in kept}


def _positions(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """Where rows, bool [L, n], are True, ascending, of which it is known how many are."""
    if rows.device.type == "cpu":
        return list(torch.split(rows.nonzero()[:, 1], counts))
    # An accelerator is waited for by `nonzero`.
    order = torch.sort(rows.byte(), dim=1, descending=True, stable=True).indices
    return [positions[:count] for positions, count in zip(order, counts, strict=True)]


def kept_positions(kept: Mapping[Key, Tensor], mask_fraction: float) -> dict[Key, Tensor]:
    """Return the positions of the rows that are kept, ascending, int64 [n - masked] each.

    No accelerator is waited for: how many there are is known.

    Args:
        kept: of `kept_rows`, bool [n] by layer.
        mask_fraction: with which they were chosen.
    """
    positions: dict[Key, Tensor] = {}
    for keys in _of_one_width(kept):
        stacked = torch.stack([kept[key] for key in keys])
        count = stacked.shape[1] - n_masked(mask_fraction, stacked.shape[1])
        found = _positions(stacked, [count] * len(keys))
        positions.update(zip(keys, found, strict=True))
    return {key: positions[key] for key in kept}


def _of_one_width(rows: Mapping[Key, Tensor]) -> Iterable[list[Key]]:
    groups: dict[object, list[Key]] = {}
    for key, values in rows.items():
        groups.setdefault((values.shape, values.device), []).append(key)
    return groups.values()


def token_magnitudes(
    output: Tensor,
    *,
    normalize: Normalize = "none",
    weights: Tensor | None = None,
    channel_dim: int = -1,
) -> tuple[Tensor, int | Tensor]:
    """Return the sum of |y_i| over all tokens, float32 [n], and the number of tokens.

    A token is whatever has an output of its own: a sample, a position of a text or of an image.

    Args:
        output: y, [..., n], or with the n units in another dimension, such as [N, C, H, W].
        normalize: "none" as the authors' code; "token": |y| of each token is divided by its own
            L1 norm first, as the paper's text may be read. A token of zeros stays zeros.
        weights: which tokens count, of the shape of the tokens or of their leading dimensions:
            [N], or [N, L] such as an attention mask. Zero leaves a token out, whatever its output,
            NaN included; any other number counts it once.
        channel_dim: of the n units in `output`.

    Returns:
        The sum, and the number of tokens that count: an int, or with weights an int64 tensor [],
        so that no accelerator is waited for.

    Raises:
        ValueError: an unknown `normalize`, weights that do not fit.
    """
    is_plain = weights is None and type(normalize) is str and normalize == "none"
    is_last = type(channel_dim) is int and channel_dim == -1
    if is_plain and is_last and _is_usual(output):  # needs no further check
        return _column_sums(output.detach())
    one_of("normalize", normalize, NORMALIZE)
    _check_output(output, channel_dim)
    output = output.detach()
    channel_dim %= output.ndim
    if is_plain and channel_dim == output.ndim - 1:
        return _column_sums(output)
    mask = None if weights is None else _fitted(weights, output, channel_dim)
    first, *others = _parts(output, mask, channel_dim)
    total = _magnitudes(*first, normalize)
    for part in others:
        total += _magnitudes(*part, normalize)
    # Tokens are counted in int64: float32 cannot count beyond 2^24.
    return total, output.numel() // max(len(total), 1) if mask is None else mask.sum()


def _is_usual(output: object) -> bool:
    if type(output) is not Tensor or output.layout != torch.strided:
        return False
    return output.is_floating_point() and output.ndim > 1


def _column_sums(output: Tensor) -> tuple[Tensor, int]:
    """Return the sum of |y| over the tokens and their number, of the usual case y [..., n]."""
    n, tokens = output.shape[-1], math.prod(output.shape[:-1])
    rows = output.reshape(tokens, n)
    on_cpu = rows.device.type == "cpu" and rows.numel() > _CACHED
    if not on_cpu:
        return rows.abs().sum(0, dtype=torch.float32), tokens
    size = max(_CACHED // rows.shape[1], 1)
    first, *others = torch.split(rows, size)
    total = first.abs().sum(0, dtype=torch.float32)
    for part in others:
        total += part.abs().sum(0, dtype=torch.float32)
    return total, tokens


def _check_output(output: Tensor, channel_dim: int) -> None:
    if not isinstance(output, Tensor) or output.is_complex() or output.layout != torch.strided:
        raise ValueError(f"output must be a dense tensor of real numbers, got {output!r}")
    if output.ndim == 0 or output.dtype == torch.bool:
        raise ValueError(f"output must be numbers [..., n], got {output.dtype} {output.shape}")
    _check_dim("channel_dim", channel_dim, "output", output.ndim)


def _check_dim(name: str, dim: int, of: str, ndim: int) -> None:
    is_int = type(dim) is int or (isinstance(dim, Integral) and not isinstance(dim, bool))
    if not is_int or not -ndim <= dim < ndim:
        raise ValueError(
            f"{name} must be a whole number from {-ndim} to {ndim - 1}, got {dim!r}: {of} has "
            f"{ndim} dimensions"
        )


def _fitted(weights: Tensor, output: Tensor, channel_dim: int) -> Tensor:
    """Return the tokens that count, bool, in the shape of the output but for one unit only."""
    tokens = [*output.shape[:channel_dim], *output.shape[channel_dim + 1 :]]
    real_tensor("weights", weights)
    if list(weights.shape) != tokens[: weights.ndim]:
        raise ValueError(
            f"weights must have the leading dimensions of the tokens {tuple(tokens)}, "
            f"got {tuple(weights.shape)}"
        )
    mask = weights.to(output.device) != 0
    mask = mask.reshape(*mask.shape, *[1] * (len(tokens) - mask.ndim))
    return mask.expand(tokens).unsqueeze(channel_dim)


def _parts(
    output: Tensor, mask: Tensor | None, channel_dim: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cut the output into pieces [samples, n, positions], and the mask, [samples, 1, positions]."""
    output = _three_dimensional(output, channel_dim)
    mask = None if mask is None else _three_dimensional(mask, channel_dim)
    if output.device.type != "cpu" or output.numel() <= _CACHED:
        yield output, mask
        return
    size = max(_CACHED // (output.shape[1] * output.shape[2]), 1)
    masks = repeat(None) if mask is None else torch.split(mask, size)
    yield from zip(torch.split(output, size), masks, strict=False)


def _three_dimensional(tensor: Tensor, channel_dim: int) -> Tensor:
    shape = tensor.shape
    before, after = math.prod(shape[:channel_dim]), math.prod(shape[channel_dim + 1 :])
    return tensor.reshape(before, shape[channel_dim], after)


def _magnitudes(part: Tensor, mask: Tensor | None, normalize: Normalize) -> Tensor:
    """Return the sum of |y| over the tokens of a piece [samples, n, positions], float32 [n]."""
    size = part.abs()
    if normalize == "token":
        norm = size.sum(1, keepdim=True, dtype=torch.float32)
        size = size.float() / norm.masked_fill(norm == 0, 1.0)
    if mask is not None:
        size = size.masked_fill(~mask, 0.0)
    return size.sum((0, 2), dtype=torch.float32)


def row_magnitudes(matrix: Tensor, dim: int = 0) -> Tensor:
    """Return the mean of |w| over each row, float32 [n]; the n rows lie along `dim`.

    Of a weight or of its gradient, it is a score to compare MIGU's with (the paper's table 11).

    Raises:
        ValueError: matrix is no tensor of real numbers of at least one dimension, or has no `dim`.
    """
    if real_tensor("matrix", matrix).ndim == 0 or matrix.dtype == torch.bool:
        raise ValueError(f"matrix must be numbers [n, ...], got {matrix.dtype} {matrix.shape}")
    _check_dim("dim", dim, "matrix", matrix.ndim)
    rows = matrix.detach().movedim(dim, 0)
    total = rows.abs().sum(tuple(range(1, rows.ndim)), dtype=torch.float32)
    return total / max(math.prod(rows.shape[1:]), 1)
