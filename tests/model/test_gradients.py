"""The matrix of gradients."""

import copy

import pytest
import torch
from torch import nn

from avalanche_mgem.model.gradients import GradientMatrix, into_row, positions, write_gradients


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(2, 3), (4,), ()]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_set_is_what_is_written_back(dtype):
    own = parameters(dtype)
    values = [torch.randn_like(p) for p in own]
    matrix = GradientMatrix()
    matrix.fit(own, 2)
    matrix.set_gradient([values[0], None, values[2]], own)
    assert matrix.gradient[6:10].tolist() == [0.0] * 4
    own[0].grad, own[2].grad = torch.zeros_like(own[0]), torch.zeros_like(own[2])
    write_gradients(own, matrix.gradient, [values[0], None, values[2]])
    assert torch.equal(own[0].grad, values[0])
    assert own[1].grad is None
    assert torch.equal(own[2].grad, values[2])


def test_rows_are_apart_from_the_gradient():
    own = parameters()
    matrix = GradientMatrix()
    matrix.fit(own, 2)
    into_row(matrix.rows[0], [torch.ones_like(p) for p in own], own)
    into_row(matrix.rows[1], [None, torch.ones(4) * 2, None], own)
    matrix.set_gradient([torch.ones_like(p) * 3 for p in own], own)
    assert matrix.rows.tolist() == [[1.0] * 11, [0.0] * 6 + [2.0] * 4 + [0.0]]
    assert matrix.gradient.tolist() == [3.0] * 11


def test_a_part_of_the_row_is_not_copied_onto_itself():
    own = parameters()
    row = torch.arange(11.0)
    into_row(row, [row[columns] for columns in positions(own)], own)
    assert row.tolist() == list(range(11))


def test_scaling_twice_is_scaling_once_until_rows_are_new():
    own = parameters()
    matrix = GradientMatrix()
    matrix.fit(own, 1)
    matrix.rows.fill_(1.0)
    for _ in range(2):
        matrix.scale_rows([2.0, 1.0, 0.5], own)
        assert matrix.rows[0].tolist() == [2.0] * 6 + [1.0] * 4 + [0.5]
    matrix.scale_rows([1.0, 1.0, 1.0], own)
    assert matrix.rows[0].tolist() == [1.0] * 11
    matrix.rows_are_new()
    matrix.scale_rows([3.0, 1.0, 1.0], own)
    assert matrix.rows[0].tolist() == [3.0] * 6 + [1.0] * 5


def test_the_buffer_is_made_anew_only_when_it_must_be():
    own = parameters()
    matrix = GradientMatrix()
    matrix.fit(own, 2)
    first = matrix.rows.data_ptr()
    matrix.fit(own, 2)
    assert matrix.rows.data_ptr() == first
    matrix.fit(own, 3)
    assert matrix.rows.shape == (3, 11)
    matrix.fit(own[:2], 3)
    assert matrix.rows.shape == (3, 10)


def test_a_copy_carries_no_buffer():
    matrix = GradientMatrix()
    matrix.fit(parameters(), 100)
    assert copy.deepcopy(matrix).rows.numel() == 0


def test_half_precision_is_kept_in_single():
    matrix = GradientMatrix()
    matrix.fit(parameters(torch.bfloat16), 1)
    assert matrix.rows.dtype == torch.float32


def test_positions_follow_each_other():
    assert list(positions(parameters())) == [slice(0, 6), slice(6, 10), slice(10, 11)]


def test_what_an_older_version_has_kept_is_left():
    matrix = GradientMatrix()
    matrix.__setstate__({"_buffer": torch.zeros(0, 0), "_factors": {}})
    matrix.fit([nn.Parameter(torch.zeros(3))], 2)
    assert (matrix.gradient.shape, matrix.rows.shape) == ((3,), (2, 3))
