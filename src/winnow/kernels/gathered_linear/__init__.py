"""Gathered linear: products with some blocks of a matrix, the others never read.   (floor 1 · kernels)

    gathered_rows      y[i]  = w_i . x + b_i               for the rows i of the listed blocks
    gathered_columns   y     = sum over those i of a_i w_i, plus b

The rows of a matrix are cut into equal blocks, one per head: queries are the first kind, the map behind
attention, stored with one row per input, is the second. Both read A / K of the matrix, K blocks in all.
Both raise UsageError for a number of blocks that does not divide the rows and for a block outside it.

    reference.py   the definition
    cpu.cpp        a block per thread; columns per thread
"""

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.kernels.checks import block_list, float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.gathered_linear.reference import gathered_columns_reference, gathered_rows_reference
from winnow.kernels.matrices import AnyMatrix

__all__ = ["gathered_columns", "gathered_columns_reference", "gathered_rows", "gathered_rows_reference"]


def gathered_rows(
    x: Float32[Tensor, " D"], matrix: AnyMatrix, blocks: Int32[Tensor, " A"], n_blocks: int, *, cpu: Cpu
) -> Float32[Tensor, " M"]:
    """Return ``weight @ x`` in the rows of the listed blocks, NaN in the others.

    Exact up to the order of summation: a row has the bits that `linear` gives it.
    """
    n_rows, width = matrix.shape
    out = torch.full((n_rows,), torch.nan)
    listed = block_list(blocks, n_rows, n_blocks)
    cpu.gathered_rows(float32_array("x", x, width)[None], matrix, None, *listed, out[None].numpy())
    return out


def gathered_columns(
    a: Float32[Tensor, " M"], matrix: AnyMatrix, blocks: Int32[Tensor, " A"], n_blocks: int, *, cpu: Cpu
) -> Float32[Tensor, " D"]:
    """Return the sum of ``a[i] * weight[i]`` over the rows i of the listed blocks.

    Exact up to the order of summation, which is that of the list.
    """
    n_rows, width = matrix.shape
    out = torch.empty(width)
    listed = block_list(blocks, n_rows, n_blocks)
    cpu.gathered_columns(float32_array("a", a, n_rows)[None], matrix, None, *listed, out[None].numpy())
    return out
