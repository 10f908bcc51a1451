"""The head in closed form: against a slow reference, and what must not change it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_mgem.restriction.ridge_head import SCALES, fit_ridge_head


def reference(z, y, ridge=0.1):
    """Numpy, by the normal equations and one class at a time."""
    z, y = z.double().numpy(), y.numpy()
    mean = z.mean(0)
    z = z - mean
    gram = z.T @ z
    r = ridge * np.linalg.eigvalsh(gram).mean()
    columns = []
    for c in sorted(set(y.tolist())):
        code = (y == c).astype(float)
        right = z.T @ (code - code.mean())
        columns.append(np.linalg.lstsq(gram + r * np.eye(len(gram)), right, rcond=None)[0])
    weight = np.stack(columns, axis=1)
    index = np.searchsorted(sorted(set(y.tolist())), y)

    def loss(scale):
        logits = scale * z @ weight
        top = logits.max(1, keepdims=True)
        normaliser = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        return float((normaliser - logits[np.arange(len(y)), index]).mean())

    best = min(SCALES, key=loss)
    return mean, best * weight, loss(best)


def drawn(samples, width, classes, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    centres = spread * torch.randn(classes, width, generator=generator)
    z = centres[y] + torch.randn(samples, width, generator=generator) + 3.0
    return z, 10 * y + 5  # targets that are not 0, 1, ...


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(2, 40),
    width=st.integers(1, 60),
    classes=st.integers(1, 5),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 0.3, 5.0]),
)
def test_it_is_the_reference_with_fewer_and_with_more_features_than_samples(
    samples, width, classes, seed, spread
):
    z, y = drawn(samples, width, classes, seed, spread)
    head = fit_ridge_head(z.double(), y)
    mean, weight, loss = reference(z, y)
    np.testing.assert_allclose(head.mean.numpy(), mean, rtol=1e-9, atol=1e-12)
    own = head.loss(z.double(), y).item()
    assert own == pytest.approx(loss, rel=1e-7, abs=1e-9)
    ratio = np.linalg.norm(head.weight.numpy()) / max(np.linalg.norm(weight), 1e-300)
    if abs(ratio - 1) < 1e-3:  # else two scales have the same loss but for rounding
        np.testing.assert_allclose(head.weight.numpy(), weight, rtol=1e-6, atol=1e-9)


def test_order_shift_and_scale_of_the_features_do_not_matter():
    z, y = drawn(60, 12, 4, seed=1)
    head = fit_ridge_head(z, y)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    for other_z, other_y in ((z[order], y[order]), (z + 7.0, y), (100.0 * z, y)):
        other = fit_ridge_head(other_z, other_y)
        assert other.loss(other_z, other_y).item() == pytest.approx(
            head.loss(z, y).item(), rel=1e-4
        )
    doubled = fit_ridge_head(torch.cat((z, z)), torch.cat((y, y)))
    torch.testing.assert_close(doubled.weight, head.weight, rtol=1e-4, atol=1e-5)


def test_it_is_better_than_chance_and_the_loss_differentiates():
    z, y = drawn(100, 8, 5, seed=3, spread=2.0)
    z.requires_grad_(True)
    head = fit_ridge_head(z, y)
    loss = head.loss(z, y)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() < 0.5 * np.log(5)
    assert not head.weight.requires_grad
    assert gradient.shape == z.shape
    assert gradient.abs().sum() > 0
    step = head.loss((z - 0.1 * gradient).detach(), y)
    assert step < loss


def test_features_that_say_nothing_and_features_that_are_not_finite():
    z, y = torch.ones(6, 3), torch.arange(6) % 2
    same = fit_ridge_head(z, y)
    assert torch.equal(same.weight, torch.zeros(3, 2))
    assert same.loss(z, y).item() == pytest.approx(np.log(2))
    one = fit_ridge_head(torch.randn(6, 3), torch.zeros(6, dtype=torch.long))
    assert one.loss(z, torch.zeros(6, dtype=torch.long)).item() == 0.0
    z[2, 1] = torch.inf
    assert fit_ridge_head(z, y).weight.isnan().all()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_half_precision_is_fitted_in_full(dtype, expected):
    z, y = drawn(20, 4, 2, seed=4)
    head = fit_ridge_head(z.to(dtype), y)
    assert head.weight.dtype == head.mean.dtype == expected
    assert head.loss(z.to(dtype), y).dtype == expected


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (torch.ones(3), torch.zeros(3).long(), r"features must be \[N, D\]"),
        (torch.ones(3, 2).long(), torch.zeros(3).long(), "features must be of a floating dtype"),
        (torch.ones(3, 2), torch.zeros(3), "targets must be integers"),
        (torch.ones(3, 2), torch.zeros(2).long(), "one number of samples"),
        (torch.ones(0, 2), torch.zeros(0).long(), "one number of samples"),
    ],
)
def test_bad_arguments_are_named(features, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_ridge_head(features, targets)


def test_a_class_that_it_was_not_fitted_to_is_refused():
    head = fit_ridge_head(torch.randn(4, 2), torch.tensor([1, 3, 1, 3]))
    with pytest.raises(ValueError, match=r"^targets: some are of classes"):
        head.loss(torch.randn(2, 2), torch.tensor([1, 2]))
