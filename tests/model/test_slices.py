"""Rows are written where they belong, however torch is made to copy them."""

import pytest
import torch

from avalanche_mgem.model.units import Slices

CASES = {
    "wide": lambda dtype: torch.arange(5 * 8).to(dtype).view(5, 8),
    "narrow": lambda dtype: torch.arange(5 * 3).to(dtype).view(5, 3),
    "with an offset": lambda dtype: torch.arange(5 * 8 + 1).to(dtype)[1:].view(5, 8),
    "transposed": lambda dtype: torch.arange(5 * 8).to(dtype).view(8, 5).t(),
    "of a kernel": lambda dtype: torch.arange(5 * 8).to(dtype).view(5, 2, 2, 2),
    "a vector": lambda dtype: torch.arange(5).to(dtype),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_rows_are_copied_to_the_bit(case, dtype):
    tensor = CASES[case](dtype)
    expected, index = tensor.clone(), torch.tensor([0, 3])
    values = -tensor.index_select(0, index)
    values.flatten()[0] = float("nan")
    version = tensor._version
    expected[index] = values
    Slices((0,)).copy(tensor, index, values)
    assert torch.equal(tensor.isnan(), expected.isnan())
    assert torch.equal(tensor.nan_to_num(), expected.nan_to_num())
    assert tensor._version > version
