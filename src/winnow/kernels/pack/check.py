"""Check: what packing refuses.   (floor 1 · kernels)"""

import torch
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.operands import DTYPE_CODES, check_memory, int4
from winnow.kernels.pack.groups import GROUP


def check_int4(width: int) -> None:
    """Refuse a row length that int4 cannot cut into groups."""
    if width < GROUP or width % GROUP:
        raise UsageError(
            f"int4 packs groups of {GROUP} weights along a row; rows of {width} are no multiple. Use int8."
        )


def check_room(weight: Tensor, values: Tensor, scales: Tensor | None, held: torch.dtype) -> None:
    """Refuse `values` and `scales` that `weight` does not fit into as `held`."""
    n_rows, width = weight.shape
    if held == int4:
        check_int4(width)
    expected = {
        torch.int8: ((n_rows, width), torch.float32, (n_rows,)),
        int4: ((n_rows, width // 2), torch.bfloat16, (n_rows, width // GROUP)),
    }.get(held, ((n_rows, width), None, None))
    found = (tuple(values.shape), *((None, None) if scales is None else (scales.dtype, tuple(scales.shape))))
    if held not in DTYPE_CODES or found != expected:
        raise UsageError(
            f"weights {tuple(weight.shape)} were to be packed into {values.dtype} {found[0]} with scales "
            f"{found[1]} {found[2]}, expected {expected[0]} with scales {expected[1]} {expected[2]}."
        )
    for name, tensor in (("weight", weight), ("values", values), ("scales", scales)):
        if tensor is not None:
            check_memory(name, tensor)
    strided = [each for each in (values, scales) if each is not None and each.ndim == 2 and each.shape[1] > 1]
    if any(each.stride(1) != 1 for each in strided):
        raise UsageError("the columns of values or scales are strided, expected one after the other.")
