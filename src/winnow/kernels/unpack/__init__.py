"""Unpack: rows of a matrix as plain floats, for products with many vectors.   (floor 1 · kernels)

    out = matrix.weight[first : first + N], rounded to the type of out

From some dozen vectors on a product is bound by its arithmetic, for which torch has a quick way once the
weights are bfloat16 and contiguous. Reads the rows' bytes, writes N * D * 2, or 4 for float32; rounding to
bfloat16 costs 2^-9 of a weight, an eighth of the least that int8 has cost it already. Weights below 2^-126
may become 0.

    reference.py   the definition
    cpu.cpp        sixteen rows at a time, shared among the threads
"""

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.cpu import Cpu
from winnow.kernels.matrices import AnyMatrix
from winnow.kernels.operands import check_dtype
from winnow.kernels.unpack.reference import unpack_reference

__all__ = ["unpack", "unpack_into", "unpack_reference"]


def unpack(matrix: AnyMatrix, dtype: torch.dtype, *, cpu: Cpu) -> Float[Tensor, "N D"]:
    """Return the whole matrix as `dtype`, float32 or bfloat16, in fresh memory."""
    check_dtype("dtype", dtype)
    out = torch.empty(matrix.shape, dtype=dtype)
    unpack_into(matrix, 0, out, cpu=cpu)
    return out


def unpack_into(matrix: AnyMatrix, first: int, out: Float[Tensor, "N D"], *, cpu: Cpu) -> None:
    """Write the rows from `first` on into `out`, which is contiguous, as many as it holds.

    Raises UsageError for rows that the matrix does not have, another width, type or layout.
    """
    check_dtype("out", out.dtype)
    n_rows, width = matrix.shape
    if out.ndim != 2 or out.shape[1] != width or not 0 <= first <= n_rows - len(out):
        raise UsageError(
            f"{tuple(out.shape)} were asked from row {first} on of a matrix of shape {(n_rows, width)}."
        )
    if not out.is_contiguous():
        raise UsageError("out is not contiguous: pass a fresh tensor.")
    cpu.unpack(matrix, first, (out.view(torch.uint16) if out.dtype == torch.bfloat16 else out).numpy())
