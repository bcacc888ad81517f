"""Writing: weights, rounded, into memory that is there; coded ones back.   (floor 1 · kernels)"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import BFloat16, Float, UInt8
from torch import Tensor

from winnow.kernels import native
from winnow.kernels.operands import CODED, DTYPE_CODES, int4
from winnow.kernels.pack.check import check_coded, check_room
from winnow.kernels.pack.coded import from_coded, to_coded
from winnow.kernels.pack.groups import to_int4
from winnow.kernels.pack.reference import to_int8

_STORED_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ALONE = 1 << 16  # weights that one thread packs or unpacks before another has started


def pack(
    weight: Float[Tensor, "N D"], values: Tensor, scales: Tensor | None = None, *, isa: str = "best"
) -> None:
    """Write `weight`, rounded to the type of `values`, into them, and its scales into `scales`.

    `values` are float32 or bfloat16 [N, D] without scales, int8 [N, D] with float32 scales [N], or uint8
    [N, D / 2] with bfloat16 scales [N, D / 32], which is int4; rows may be strided. The bits are those of the
    definition. Reads and writes every byte once. `isa` is as for `open_cpu`. Raises UsageError for other
    shapes or types.
    """
    held = int4 if values.dtype == torch.uint8 else values.dtype
    check_room(weight, values, scales, held)
    module = native.module
    if module is None or isa == "torch":
        made = to_int8(weight) if held == torch.int8 else to_int4(weight) if held == int4 else (weight, None)
        values.copy_(made[0])
        if scales is not None and made[1] is not None:
            scales.copy_(made[1])
        return
    row_stride = values.stride(0) * (2 if held == int4 else 1)
    held_scales = (0, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    into = module.Matrix(values.data_ptr(), *weight.shape, row_stride, DTYPE_CODES[held], *held_scales)
    _pack_into(weight, into, isa, module)


def pack_coded(weight: Float[Tensor, "N D"], rows: Tensor, *, isa: str = "best") -> bool:
    """Write `weight`, rounded to bfloat16 and coded, into uint8 `rows`, which may be strided.

    Returns False, some rows unwritten, where one has more patches than there is room for. Otherwise as
    `pack`; raises UsageError for a width that is not coded, other rows or types.
    """
    check_coded(weight, rows)
    module = native.module
    if module is None or isa == "torch":
        made = to_coded(weight)
        if made is not None:
            rows.copy_(made)
        return made is not None
    into = module.Matrix(rows.data_ptr(), *weight.shape, rows.stride(0), CODED, 0, 0)
    return _pack_into(weight, into, isa, module)


def unpack_coded(rows: UInt8[Tensor, "N row_bytes"], width: int) -> BFloat16[Tensor, "N D"]:
    """Return the weights that coded rows stand for, in fresh memory; rows may be strided."""
    module = native.module
    if module is None:
        return from_coded(rows, width)
    weight = torch.empty(len(rows), width, dtype=torch.bfloat16)
    held = module.Matrix(rows.data_ptr(), len(rows), width, rows.stride(0), CODED, 0, 0)
    _cpu(weight.numel(), "best", module).unpack(held, 0, weight.view(torch.uint16).numpy())
    return weight


def _pack_into(weight: Tensor, into: Any, isa: str, module: ModuleType) -> bool:
    source = weight.detach() if weight.dtype in _STORED_CODES else weight.detach().float()
    cpu = _cpu(weight.numel(), isa, module)
    return cpu.pack(source.data_ptr(), _STORED_CODES[source.dtype], *source.stride(), into)


def _cpu(n_weights: int, isa: str, module: ModuleType) -> Any:
    """Return threads of their own for as many weights."""
    threads = torch.get_num_threads() if n_weights > _ALONE else 1
    return module.Cpu(threads, module.isa_levels()[-1] if isa == "best" else isa)
