"""The projection: what it promises, then a slow reference."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty import Stubborn, rows_and_gradient
from reference import cone as reference

from avalanche_mgem.restriction import DiagonalSolver, PivotingSolver, project


@st.composite
def problems(draw):
    """(gradient, rows, modules as slices) with modules that may leave positions out."""
    rows, gradient = draw(rows_and_gradient(max_rows=5))
    edges = sorted(draw(st.sets(st.integers(0, len(gradient)), min_size=2, max_size=4)))
    if len(edges) < 2:
        edges = [0, len(gradient)]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    modules = [parts[::2], parts[1::2]] if draw(st.booleans()) else [[p] for p in parts]
    return torch.from_numpy(gradient), torch.from_numpy(rows), [m for m in modules if m]


def positions(module):
    return [i for part in module for i in range(part.start, part.stop)]


@given(problems())
@settings(max_examples=300)
def test_no_row_is_harmed_in_any_module(problem):
    gradient, rows, modules = problem
    z = project(gradient, rows, modules=modules).gradient
    for module in modules:
        at = positions(module)
        for row in rows:
            room = 1e-5 * float(row[at].norm() * gradient[at].norm())
            assert float(row[at] @ z[at]) >= -room


@given(problems())
def test_positions_in_no_module_and_unharmed_modules_stay(problem):
    gradient, rows, modules = problem
    projection = project(gradient, rows, modules=modules, memory_strength=0.5)
    harmed = projection.violated_rows.any(dim=1)
    moved = {i for m, h in zip(modules, harmed, strict=True) if h for i in positions(m)}
    still = [i for i in range(len(gradient)) if i not in moved]
    assert torch.equal(projection.gradient[still], gradient[still])


@given(problems())
def test_projecting_twice_is_projecting_once(problem):
    gradient, rows, modules = problem
    once = project(gradient, rows, modules=modules).gradient
    twice = project(once, rows, modules=modules).gradient
    assert float((once - twice).norm()) <= 1e-4 * float(gradient.norm())


@given(problems(), st.sampled_from([0.0, 0.3]), st.sampled_from(["relative", 1e-3]))
@settings(max_examples=300)
def test_it_is_what_the_slow_reference_says(problem, strength, ridge):
    gradient, rows, modules = problem
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    lower = np.full(len(rows), strength)
    z = project(gradient, rows, modules=modules, memory_strength=strength, ridge=ridge).gradient
    at = [positions(module) for module in modules]
    expected = reference.project(gradient.numpy(), rows.numpy(), at, lower, ridge)
    size = max(float(gradient.norm()), float(np.linalg.norm(expected)))
    if ridge == "relative":  # it may be felt to the fifth digit, of what there is to push
        size = 20 * (size + strength * len(rows))
    assert np.linalg.norm(z.numpy() - expected) <= 1e-6 * size


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize("n_modules", [1, 4])
def test_float32_and_thousands_of_positions(strength, n_modules):
    rows, gradient = torch.randn(6, 10_000) + torch.randn(10_000), torch.randn(10_000)
    gradient -= 0.05 * rows.sum(0)
    edges = np.linspace(0, 10_000, n_modules + 1).astype(int)
    modules = [[slice(a, b)] for a, b in pairwise(edges)]
    projection = project(gradient, rows, modules=modules, memory_strength=strength)
    assert projection.violated
    expected = reference.project(
        gradient.numpy(),
        rows.numpy(),
        [positions(m) for m in modules],
        np.full(6, strength),
        "relative",
    )
    error = np.linalg.norm(projection.gradient.numpy() - expected)
    assert error <= 1e-6 * max(float(gradient.norm()), np.linalg.norm(expected))


@given(problems(), st.sampled_from([0.0, 0.7]))
def test_what_it_tells_of_itself_is_true(problem, strength):
    gradient, rows, modules = problem
    projection = project(gradient, rows, modules=modules, memory_strength=strength)
    z = projection.gradient
    for index, module in enumerate(modules):
        at = positions(module)
        torch.testing.assert_close(projection.dots[index], rows[:, at] @ gradient[at])
        pushed = gradient[at] + projection.dual[index] @ rows[:, at]
        torch.testing.assert_close(z[at], pushed, rtol=1e-9, atol=0.0)
        own, own_z = gradient[at], z[at]
        if own.norm() > 0:
            change = float((own_z - own).norm() / own.norm())
            assert float(projection.module_change[index]) == pytest.approx(change)
        if own.norm() > 0 and own_z.norm() > 1e-9 * own.norm():
            cosine = float((own / own.norm()) @ (own_z / own_z.norm()))
            assert float(projection.module_cosine[index]) == pytest.approx(cosine, abs=1e-9)
    length = gradient.norm()
    assert projection.relative_change == pytest.approx(float((z - gradient).norm() / length))
    if z.norm() > 1e-9 * length:
        cosine = float(z @ gradient / length / z.norm())
        assert projection.cosine == pytest.approx(cosine, abs=1e-9)


class Whole(PivotingSolver):
    """The same solver, which is given the whole Gram matrix at once."""

    exact = False


@pytest.mark.parametrize("strength", [0.0, 0.1])
@pytest.mark.parametrize("size", [50, 5_000])
def test_many_rows_in_rounds_give_what_all_rows_at_once_give(size, strength):
    """Some of 40 rows, in float64 and in float32 runs."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, size, generator=generator)
    gradient = torch.randn(size, generator=generator) - 0.1 * rows[:10].sum(0)
    solver = Counting()
    arguments = {"memory_strength": strength}
    in_rounds = project(gradient, rows, solver=solver, **arguments)
    whole = project(gradient, rows, solver=Whole(), **arguments)
    assert max(solver.sizes, default=0) < 40
    error = float((in_rounds.gradient - whole.gradient).norm())
    assert error <= 1e-5 * max(float(gradient.norm()), float(whole.gradient.norm()))


class Counting(PivotingSolver):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def __call__(self, gram, dots, lower):
        self.sizes.append(len(dots))
        return super().__call__(gram, dots, lower)


def test_a_row_that_the_answer_would_harm_joins_in_a_round_of_its_own():
    """The second row is not harmed by g, but by what avoiding the first makes of it."""
    rows = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    gradient, solver = torch.tensor([-1.0, -1.0, 1.0]), Counting()
    projection = project(gradient, rows, solver=solver)
    assert projection.violated_rows.tolist() == [[True, False, False]]
    assert solver.sizes == [1, 2]
    assert (projection.dual > 0).tolist() == [[True, True, False]]
    assert float((rows @ projection.gradient).min()) > -1e-5


def test_the_rows_at_their_bound_are_not_solved_for():
    """With gamma the push of all rows together leaves nothing to solve."""
    gradient, solver = torch.tensor([-0.1, 1.0, 1.0, 1.0]), Counting()
    projection = project(gradient, torch.eye(4) + 0.5, memory_strength=5.0, solver=solver)
    assert not projection.violated
    gradient[0] = -3.0
    projection = project(gradient, torch.eye(4) + 0.5, memory_strength=5.0, solver=solver)
    assert projection.violated
    assert solver.sizes == []
    assert (projection.dual == 5.0).all()


def test_a_larger_ridge_is_counted():
    gradient, rows = torch.tensor([-1.0, -1.0]), torch.eye(2)
    assert project(gradient, rows).retries == 0
    modules = [[slice(0, 1)], [slice(1, 2)]]
    assert project(gradient, rows, modules=modules, solver=Stubborn()).retries == 2


def test_an_unharmed_gradient_is_returned_as_it_is():
    gradient = torch.tensor([1.0, 0.0])
    projection = project(gradient, torch.tensor([[1.0, 1.0]]), memory_strength=3.0)
    assert projection.gradient is gradient
    assert not projection.violated
    assert (projection.relative_change, projection.cosine) == (0.0, 1.0)
    assert not projection.dual.any()


def test_memory_strength_may_differ_between_rows():
    rows = torch.eye(3, dtype=torch.float64)
    gradient = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    projection = project(gradient, rows, memory_strength=torch.tensor([0.0, 2.0, 0.0]))
    torch.testing.assert_close(
        projection.gradient, torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_the_diagonal_solver_overshoots_on_correlated_rows():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    gradient = torch.tensor([-1.0, 0.0])
    exact = project(gradient, rows).gradient
    approximate = project(gradient, rows, solver=DiagonalSolver()).gradient
    assert float(rows[0] @ exact) == pytest.approx(0.0, abs=1e-5)
    assert float(rows[0] @ approximate) > 0.9


def test_the_diagonal_solver_may_leave_rows_violated():
    """The second row, which the gradient does not violate, is harmed by the push of the first."""
    rows = torch.tensor([[1.0, 0.0], [-0.8, 0.6]])
    gradient = torch.tensor([-1.0, -1.0])
    exact = project(gradient, rows)
    approximate = project(gradient, rows, solver=DiagonalSolver())
    assert exact.violated_rows.tolist() == [[True, False]]
    assert float((rows @ exact.gradient).min()) > -1e-6
    assert float(rows[1] @ approximate.gradient) == pytest.approx(-0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_strength": -0.1}, "memory_strength must be a finite number >= 0"),
        ({"memory_strength": float("nan")}, "memory_strength"),
        ({"memory_strength": torch.tensor([1.0])}, "memory_strength must be one finite number"),
        ({"memory_strength": torch.tensor([1.0, -1.0])}, "memory_strength"),
        ({"gradient": torch.ones(3)}, r"rows must be \[K, P\]"),
        ({"rows": torch.ones(2)}, r"rows must be \[K, P\]"),
        ({"ridge": -5}, "ridge must be a finite number >= 0"),
        ({"ridge": "auto"}, "ridge must be a finite number >= 0"),
        ({"modules": []}, "modules must name at least one module"),
        ({"modules": [[slice(0, 2)], [slice(1, 2)]]}, "modules must be disjoint"),
        ({"modules": [[slice(0, 3)]]}, r"modules must be disjoint slices of \[0, 2\)"),
        ({"modules": [[slice(-1, 2)]]}, "modules must be disjoint"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"gradient": torch.ones(2), "rows": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=message):
        project(**{**good, **arguments})


@pytest.mark.parametrize("wrong", [[float("nan")] * 2, [1.0]])
def test_a_solver_that_returns_nonsense_is_named(wrong):
    with pytest.raises(ValueError, match="solver must return 2 finite dual variables"):
        project(-torch.ones(2), torch.ones(2, 2), solver=lambda gram, dots, lower: wrong)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_projected(bad):
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        project(torch.tensor([bad, 1.0]), torch.ones(2, 2))
