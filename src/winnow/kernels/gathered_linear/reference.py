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
    kept = _members(blocks, len(weight), n_blocks)
    y = torch.full((len(weight),), torch.nan, dtype=x.dtype)
    y[kept] = weight[kept].to(x.dtype) @ x
    return y


def gathered_columns_reference(
    a: Float[Tensor, " M"],
    weight: Float[Tensor, "D M"],
    blocks: Int[Tensor, " A"],
    n_blocks: int,
) -> Float[Tensor, " D"]:
    """Return ``weight[:, kept] @ a[kept]`` where the columns of the listed blocks are kept."""
    kept = _members(blocks, len(a), n_blocks)
    return weight[:, kept].to(a.dtype) @ a[kept]


def _members(blocks: Int[Tensor, " A"], n_things: int, n_blocks: int) -> Tensor:
    size = n_things // n_blocks
    return (blocks.long()[:, None] * size + torch.arange(size)).flatten()
