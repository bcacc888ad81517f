"""Check: what packing refuses.   (floor 1 · kernels)"""

import torch
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.operands import DTYPE_CODES, check_memory, int4
from winnow.kernels.pack.coded import can_code, coded_row_bytes
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


def check_coded(weight: Tensor, rows: Tensor) -> None:
    """Refuse a row length that is not coded, and `rows` that the coded weights do not fit into."""
    n_rows, width = weight.shape
    if not can_code(width):
        raise UsageError(
            f"rows of {width} weights were to be coded, expected a multiple of 128 in 256..16384. "
            "Hold them as bfloat16."
        )
    expected = (n_rows, coded_row_bytes(width))
    if rows.dtype != torch.uint8 or tuple(rows.shape) != expected or rows.stride(1) != 1:
        raise UsageError(
            f"weights {tuple(weight.shape)} were to be coded into {rows.dtype} {tuple(rows.shape)} of stride "
            f"{rows.stride()}, expected uint8 {expected}, columns one after the other."
        )
    check_memory("weight", weight)
    check_memory("rows", rows)
