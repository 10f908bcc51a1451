"""Projections from products that are on the host, as on an accelerator; here on the CPU."""

import numpy as np
import pytest
import torch

from avalanche_mgem.restriction import DiagonalSolver, PivotingSolver, QuadprogSolver, cone, project
from avalanche_mgem.restriction.cone import Cone

SOLVERS = [PivotingSolver(), QuadprogSolver(), DiagonalSolver()]
MODULES = [[slice(0, 700)], [slice(800, 900), slice(1000, 5300)], [slice(900, 1000)]]


def problem(n_rows, size=5300):
    generator = torch.Generator().manual_seed(n_rows)
    rows = torch.randn(n_rows, size, generator=generator)
    rows += 0.5 * torch.randn(size, generator=generator)
    return torch.randn(size, generator=generator) - rows.mean(0), rows


@pytest.fixture
def on_host(monkeypatch):
    monkeypatch.setattr(cone, "asks_once", lambda gradient, rows: True)


@pytest.mark.parametrize("strength", [0.0, 0.1])
@pytest.mark.parametrize("modules", [None, MODULES], ids=["whole", "modules"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_it_is_the_projection_that_is_made_step_by_step(solver, modules, strength, monkeypatch):
    gradient, rows = problem(7)
    arguments = {"memory_strength": strength, "modules": modules, "solver": solver}
    monkeypatch.setattr(cone, "asks_once", lambda gradient, rows: False)
    expected = project(gradient.double(), rows.double(), **arguments)
    monkeypatch.setattr(cone, "asks_once", lambda gradient, rows: True)
    found = project(gradient, rows, **arguments)
    assert expected.violated
    torch.testing.assert_close(found.gradient.double(), expected.gradient, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.dual, expected.dual, rtol=1e-4, atol=1e-6)
    for name in ("module_change", "module_cosine"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
    assert found.relative_change == pytest.approx(expected.relative_change, abs=1e-6)


def test_it_is_exact(on_host):
    gradient, rows = problem(40)
    z = project(gradient, rows).gradient.double()
    violation = -(rows.double() @ z) / rows.double().norm(dim=1) / gradient.norm()
    assert violation.max() < 1e-6


@pytest.mark.parametrize("kind", ["step by step", "at once"])
def test_a_cone_is_used_again_on_what_its_tensors_are_by_then(kind, monkeypatch):
    monkeypatch.setattr(cone, "asks_once", lambda gradient, rows: kind == "at once")
    gradient, rows = problem(5)
    used = Cone(gradient, rows)
    first = used.project(0.1).after.clone()
    kept = gradient.clone(), rows.clone()
    gradient.copy_(torch.randn(gradient.shape)), rows.mul_(1e-25)
    used.project(0.1)
    gradient.copy_(kept[0]), rows.copy_(kept[1])
    torch.testing.assert_close(used.project(0.1).after, first, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["step by step", "at once"])
@pytest.mark.parametrize("where", ["gradient", "rows", "alongside", "nothing"])
def test_what_is_not_finite_is_refused(where, kind, monkeypatch):
    monkeypatch.setattr(cone, "asks_once", lambda gradient, rows: kind == "at once")
    gradient, rows = problem(3)
    alongside = torch.ones(2, dtype=torch.float64)
    for value in (np.nan, np.inf):
        tensors = {"gradient": gradient, "rows": rows[1], "alongside": alongside}
        if where in tensors:
            tensors[where][1] = value
            with pytest.raises(FloatingPointError):
                Cone(gradient, rows).project(alongside=alongside)
        else:
            assert Cone(gradient, rows).project(alongside=alongside).violated


def test_numbers_too_large_for_float32_are_refused(on_host):
    gradient, rows = torch.tensor([-1e38, 0.0]), torch.tensor([[1e-3, 1e3]])
    with pytest.raises(FloatingPointError, match="too large"):
        project(gradient, rows, memory_strength=3e38)
