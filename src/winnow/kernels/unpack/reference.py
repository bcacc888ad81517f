"""Unpack, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.kernels.matrices import AnyMatrix


def unpack_reference(matrix: AnyMatrix, dtype: torch.dtype) -> Float[Tensor, "N D"]:
    """Return the matrix that is meant, each weight rounded to `dtype`."""
    return matrix.weight.to(dtype)
