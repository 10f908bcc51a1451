"""The projection on a GPU is the one on the CPU."""

import pytest
import torch
from cuda_cases import DEVICE, needs_cuda
from tiny import relative_distance

from avalanche_mgem.restriction import DiagonalSolver, PivotingSolver, QuadprogSolver, project

pytestmark = [pytest.mark.cuda, needs_cuda]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def problem(rows, columns, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(columns, generator=generator, dtype=dtype)  # and so rows are violated
    memory = torch.randn(rows, columns, generator=generator, dtype=dtype) + shared / 2
    return torch.randn(columns, generator=generator, dtype=dtype) - shared, memory


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, 20, 160])
@pytest.mark.parametrize("columns", [200, 5000, 100_000])
def test_it_is_that_of_the_cpu(rows, columns, dtype):
    gradient, memory = problem(rows, columns, dtype)
    there = project(gradient.to(DEVICE), memory.to(DEVICE), memory_strength=0.1)
    here = project(gradient, memory, memory_strength=0.1)
    assert there.gradient.device.type == DEVICE
    assert here.violated
    assert torch.equal(here.violated_rows, there.violated_rows)
    assert relative_distance(there.gradient.cpu(), here.gradient) < TOLERANCE[dtype]
    assert relative_distance(there.dual, here.dual) < 10 * TOLERANCE[dtype]
    assert there.cosine == pytest.approx(here.cosine, rel=1e-4)


@pytest.mark.parametrize("solver", [PivotingSolver, QuadprogSolver, DiagonalSolver])
def test_modules_are_projected_each_on_its_own(solver):
    gradient, memory = problem(8, 9000, torch.float32)
    modules = [[slice(0, 100)], [slice(100, 5000), slice(6000, 7000)], [slice(7000, 9000)]]
    there, here = (
        project(g, m, memory_strength=0.1, modules=modules, solver=solver())
        for g, m in ((gradient.to(DEVICE), memory.to(DEVICE)), (gradient, memory))
    )
    assert relative_distance(there.gradient.cpu(), here.gradient) < 1e-4
    assert torch.equal(there.gradient[5000:6000].cpu(), gradient[5000:6000])


def test_what_is_not_finite_is_refused():
    gradient, memory = problem(3, 5000, torch.float32)
    memory[1, 7] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        project(gradient.to(DEVICE), memory.to(DEVICE))
