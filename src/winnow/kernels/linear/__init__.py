"""Linear: a matrix times one vector, at the speed of memory.   (floor 1 · kernels)

    y = W @ x + b

At batch 1 the product is bound by the M * D * itemsize bytes of W, each read once. Sums are kept in float32
and `x` is not rounded to bfloat16: where the processor multiplies bfloat16 pairs, `x` is handed over as the
sum of two (relative error 2^-17). With int8 weights each sum is multiplied by its row's scale.

    reference.py   the definition
    product.hpp    a range of rows times a vector, for other kernels too
    cpu.cpp        eight rows at once per thread, blocks of rows shared among the threads
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.linear.reference import linear_reference
from winnow.kernels.matrices import AnyMatrix

__all__ = ["linear", "linear_reference"]


def linear(
    x: Float32[Tensor, " D"], matrix: AnyMatrix, bias: Float32[Tensor, " M"] | None = None, *, cpu: Cpu
) -> Float32[Tensor, " M"]:
    """Return ``matrix.weight @ x + bias``.

    Exact up to the order of summation, which does not depend on the number of threads. Raises UsageError for
    other shapes or dtypes.
    """
    n_rows, width = matrix.weight.shape
    shift = None if bias is None else float32_array("bias", bias, n_rows)
    out = torch.empty(n_rows)
    cpu.linear(float32_array("x", x, width)[None], matrix, shift, out[None].numpy())
    return out
