"""Layout: a matrix whose columns are cut into blocks, in the order of reading.   (floor 1 · kernels)

The rows of a block lie together, one after the other: what is read of a block is one run of memory, where
whole rows would leave strides.
"""

from jaxtyping import Shaped
from torch import Tensor

from winnow.base.errors import UsageError


def by_blocks(weight: Shaped[Tensor, "D M"], n_blocks: int) -> Shaped[Tensor, "rows columns"]:
    """Return `weight` as D * n_blocks rows of M / n_blocks columns, in the order of `gathered_columns`.

    Raises UsageError where the blocks do not divide the columns.
    """
    if n_blocks < 1 or weight.shape[1] % n_blocks:
        raise UsageError(f"{n_blocks} blocks were asked of {weight.shape[1]} columns, expected a divisor.")
    return weight.unflatten(1, (n_blocks, -1)).transpose(0, 1).flatten(0, 1)


def from_blocks(rows: Shaped[Tensor, "rows columns"], n_blocks: int) -> Shaped[Tensor, "D M"]:
    """Return the matrix that `by_blocks` laid out."""
    return rows.unflatten(0, (n_blocks, -1)).transpose(0, 1).flatten(1)
