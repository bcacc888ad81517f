"""What the public functions refuse, said so that the caller can mend it."""

import pytest
import torch

from winnow.base.errors import UsageError
from winnow.kernels.checks import float32_array, index_array


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_names_the_argument_and_its_dtype(dtype: torch.dtype):
    with pytest.raises(UsageError, match=rf"gain is {dtype}.*expected float32"):
        float32_array("gain", torch.zeros(3, dtype=dtype), 3)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_names_both_shapes(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"expected \(3,\)"):
        float32_array("gain", torch.zeros(shape), 3)


def test_a_strided_tensor_is_copied_and_a_contiguous_one_is_not():
    wide = torch.arange(12.0).view(3, 4)
    assert float32_array("x", wide[:, 1], 3).tolist() == [1.0, 5.0, 9.0]
    assert float32_array("x", wide, 3, 4).ctypes.data == wide.data_ptr()


@pytest.mark.parametrize("indices", [torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int32)])
def test_indices_are_a_list_of_int32(indices: torch.Tensor):
    with pytest.raises(UsageError, match=r"int32 \[A\]"):
        index_array(indices, 5)


def test_an_index_outside_names_the_range():
    with pytest.raises(UsageError, match=r"spans 1\.\.5, the records hold neurons 0\.\.4"):
        index_array(torch.tensor([5, 1], dtype=torch.int32), 5)
    assert index_array(torch.tensor([], dtype=torch.int32), 5).tolist() == []
