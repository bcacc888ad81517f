"""Gathered linear: products with some blocks of a matrix, the others never read.   (floor 1 · kernels)

    gathered_rows      y[i] = w_i . x                      for the rows i of the listed blocks
    gathered_columns   y    = weight[:, kept] @ a[kept]    over the columns of the listed blocks

The rows of a matrix are cut into equal blocks, or its columns: one per head. Queries are the first kind, the
map behind attention is the second. Both read A / K of the matrix, K blocks in all. Both raise UsageError for
a number of blocks that does not divide the rows or columns and for a block outside it.

    reference.py   the definition
    layout.py      columns in blocks, laid out so that what is read lies in order
    cpu.cpp        runs of blocks per thread; runs of rows per thread
"""

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.kernels.checks import block_list, float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.gathered_linear.layout import by_blocks, from_blocks
from winnow.kernels.gathered_linear.reference import gathered_columns_reference, gathered_rows_reference
from winnow.kernels.matrices import AnyMatrix

__all__ = [
    "by_blocks",
    "from_blocks",
    "gathered_columns",
    "gathered_columns_reference",
    "gathered_rows",
    "gathered_rows_reference",
]


def gathered_rows(
    x: Float32[Tensor, " D"], matrix: AnyMatrix, blocks: Int32[Tensor, " A"], n_blocks: int, *, cpu: Cpu
) -> Float32[Tensor, " M"]:
    """Return ``weight @ x`` in the rows of the listed blocks, NaN in the others: the bits of `linear`."""
    n_rows, width = matrix.shape
    out = torch.full((n_rows,), torch.nan)
    listed, count = block_list(blocks, n_rows, n_blocks)
    cpu.gathered_rows(
        float32_array("x", x, width)[None], matrix, None, listed[None], count, out[None].numpy()
    )
    return out


def gathered_columns(
    a: Float32[Tensor, " M"], matrix: AnyMatrix, blocks: Int32[Tensor, " A"], n_blocks: int, *, cpu: Cpu
) -> Float32[Tensor, " D"]:
    """Return the product over the columns of the listed blocks.

    `matrix` holds ``by_blocks(weight, n_blocks)``. Exact up to the order of summation, that of the list.
    """
    n_rows, width = matrix.shape
    listed, count = block_list(blocks, n_rows, n_blocks)
    out = torch.empty(n_rows // n_blocks)
    row = float32_array("a", a, n_blocks * width)[None]
    cpu.gathered_columns(row, matrix, None, listed[None], count, out[None].numpy())
    return out
