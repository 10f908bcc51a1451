"""memory_precision="bf16": the memory's gradients are kept in bfloat16."""

import copy

import pytest
import torch
from tiny import Call, domain_stream, make_model, make_strategy, parameter_vector, train
from torch import nn
from torch.optim import SGD

from avalanche_mgem import MGEMPlugin, MIGUPlugin
from avalanche_mgem.bridge import distributed
from avalanche_mgem.bridge.distributed import average_rows
from avalanche_mgem.bridge.size import check_size
from avalanche_mgem.model.gradients import GradientMatrix

pytestmark = pytest.mark.filterwarnings("ignore:memory_precision='bf16'")


def trained(plugin, *others, model=None, n_experiences=3, **options):
    strategy = make_strategy(model or make_model(), [plugin, *others], **options)
    train(strategy, domain_stream(n_experiences=n_experiences).train_stream)
    return strategy


def test_rows_take_half_the_memory():
    taken = {}
    for precision in ("float32", "bf16"):
        plugin = MGEMPlugin(12, memory_groups=4, memory_precision=precision, seed=0)
        size = len(parameter_vector(trained(plugin).model))
        matrix = plugin._matrix
        assert matrix.rows.shape == (8, size)
        assert matrix.gradient.dtype == torch.float32
        storages = {t.untyped_storage().data_ptr(): t for t in (matrix.rows, matrix.gradient)}
        taken[precision] = sum(t.untyped_storage().nbytes() for t in storages.values())
    assert taken == {"float32": (8 + 1) * size * 4, "bf16": 8 * size * 2 + size * 4}


def test_the_size_is_checked_with_two_bytes_a_number():
    parameters = [nn.Parameter(torch.zeros(10, 5))]
    needed = 50 * (7 * 2 + 3 * 4)
    check_size(7, parameters, needed, "here", half=True)
    with pytest.raises(ValueError, match="7 memory rows"):
        check_size(7, parameters, needed - 1, "here", half=True)
    wide = [nn.Parameter(torch.zeros(10, 5, dtype=torch.float64))]
    check_size(7, wide, 50 * 9 * 8, "here", half=True)
    model, stream = make_model(), domain_stream(n_experiences=3).train_stream
    least = len(parameter_vector(model)) * (6 * 2 + 3 * 4)
    options = {"memory_groups": 3, "memory_precision": "bf16", "seed": 0}
    make_strategy(copy.deepcopy(model), [MGEMPlugin(12, max_row_bytes=least, **options)]).train(
        stream[0]
    )
    with pytest.raises(ValueError, match="6 memory rows"):
        make_strategy(model, [MGEMPlugin(12, max_row_bytes=least - 1, **options)]).train(stream[0])


def test_a_model_in_float64_keeps_its_rows():
    matrix, parameters = GradientMatrix(), [nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    matrix.fit(parameters, 2, half=True)
    assert matrix.rows.dtype == matrix.gradient.dtype == torch.float64


def test_held_rows_are_zero_in_gradient_and_rows():
    matrix, parameters = GradientMatrix(), [nn.Parameter(torch.zeros(3, 2))]
    matrix.fit(parameters, 2, half=True)
    for tensor in (matrix.gradient, matrix.rows):
        tensor.fill_(1.0)
    matrix.hold_still(slice(0, 6), torch.Size((3, 2)), (0,), torch.tensor([True, False, True]))
    assert matrix.gradient.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert matrix.rows.tolist() == [matrix.gradient.tolist()] * 2


@pytest.mark.parametrize("passes", ["loop", "grouped"])
@pytest.mark.parametrize("restrict", ["gradient", "update"])
def test_a_step_does_no_harm_to_the_rows_as_they_are_kept(restrict, passes):
    """Under two learning rates, so that an update's rows are scaled."""
    plugin = MGEMPlugin(
        12,
        0.0,
        memory_groups=3,
        restrict=restrict,
        memory_passes=passes,
        memory_precision="bf16",
        ridge="relative",
        seed=0,
    )
    harms, violated, before = [], [], {}

    def begin(strategy):
        before["parameters"] = parameter_vector(strategy.model)

    def look(strategy):
        if plugin.last_projection is None:
            return
        rows = plugin._matrix.rows.double()
        step = before["parameters"].double() - parameter_vector(strategy.model).double()
        first = sum(p.numel() for p in list(strategy.model.parameters())[:2])
        if restrict == "update":  # the rows are in the metric of the rates, sqrt(0.1 / 0.4)
            rows[:, first:] /= 0.5
        else:  # the gradient
            step[:first] /= 0.4
            step[first:] /= 0.1
        violated.append(plugin.last_projection.violated)
        harms.append(float((-(rows @ step) / (rows.norm(dim=1) * step.norm())).max()))

    def optimizer(model):
        first, rest = list(model.parameters())[:2], list(model.parameters())[2:]
        return SGD([{"params": first, "lr": 0.4}, {"params": rest, "lr": 0.1}])

    looks = [Call(before_update=begin), plugin, Call(after_update=look)]
    strategy = make_strategy(make_model(), looks, optimizer=optimizer, train_epochs=3)
    train(strategy, domain_stream(n_experiences=3).train_stream)
    assert plugin._matrix.rows.dtype == torch.bfloat16
    assert any(violated)
    assert max(harms) < 1e-5


def test_rows_are_added_up_in_float32_over_processes(monkeypatch):
    parts = torch.randn(2, 3, 50).bfloat16()
    monkeypatch.setattr(distributed, "n_processes", lambda: 2)
    others = iter([t for row in parts[1] for t in (row.float() * 5, torch.tensor(5.0))])
    monkeypatch.setattr(distributed, "add_up", lambda own: own.add_(next(others)))
    rows = parts[0].clone()
    average_rows(rows, [3, 3, 3])
    exact = (parts[0].double() * 3 + parts[1].double() * 5) / 8
    assert torch.equal(rows, exact.float().bfloat16())


def test_a_copy_in_the_middle_goes_on_as_the_run():
    plugin, stream = MGEMPlugin(12, memory_precision="bf16", seed=0), domain_stream(3).train_stream
    strategy = make_strategy(make_model(), [plugin])
    train(strategy, stream[:2])
    other = copy.deepcopy(strategy)
    train(strategy, stream[2:])
    train(other, stream[2:])
    assert torch.equal(parameter_vector(strategy.model), parameter_vector(other.model))


def test_gaps_are_measured_beside_rows_in_bfloat16():
    gaps = []
    for precision in ("float32", "bf16"):
        plugin = MGEMPlugin(7, memory_precision=precision, generalization_every=1, seed=0)
        trained(plugin, optimizer=lambda model: SGD(model.parameters(), lr=0.0))
        gaps.append(plugin.last_generalization)
    assert set(gaps[0]) == set(gaps[1]) == {0, 1}
    assert all(abs(gaps[0][task] - gaps[1][task]) < 0.03 for task in gaps[0])


def test_migu_beside_holds_rows_in_bfloat16_still():
    plugin = MGEMPlugin(12, 0.0, memory_precision="bf16", seed=0)
    strategy = trained(plugin, MIGUPlugin(0.5))
    assert parameter_vector(strategy.model).isfinite().all()
    assert (plugin._matrix.rows == 0).any()


def test_a_memory_that_gives_nan_is_named():
    plugin = MGEMPlugin(12, memory_precision="bf16", seed=0)
    strategy = make_strategy(make_model(), [plugin])
    stream = domain_stream(3).train_stream
    train(strategy, stream[:1])
    plugin.memory.close_task()
    plugin.memory.closed_groups()[0].batch[0][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="the memory row of task 0, group 0"):
        train(strategy, stream[1:2])
