"""Products with some blocks of a matrix, by their definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gathered_rows_reference(
    x: Float[Tensor, " D"],
    weight: Float[Tensor, "M D"],
    blocks: Int[Tensor, " A"],
    n_blocks: int,
) -> Float[Tensor, " M"]:
    """Return ``weight @ x`` in the rows of the listed blocks, NaN in the others."""
    kept = _rows(blocks, len(weight), n_blocks)
    y = torch.full((len(weight),), torch.nan, dtype=x.dtype)
    y[kept] = weight[kept].to(x.dtype) @ x
    return y


def gathered_columns_reference(
    a: Float[Tensor, " M"],
    weight: Float[Tensor, "M D"],
    blocks: Int[Tensor, " A"],
    n_blocks: int,
) -> Float[Tensor, " D"]:
    """Return the sum of ``a[i] * weight[i]`` over the rows i of the listed blocks."""
    kept = _rows(blocks, len(weight), n_blocks)
    return a[kept] @ weight[kept].to(a.dtype)


def _rows(blocks: Int[Tensor, " A"], n_rows: int, n_blocks: int) -> Tensor:
    size = n_rows // n_blocks
    return (blocks.long()[:, None] * size + torch.arange(size)).flatten()
