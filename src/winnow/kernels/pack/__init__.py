"""Pack: weights into the form in which products read them.   (floor 1 · kernels)

    float32, bfloat16   the nearest
    int8                scale = max |row| / 127,           value = round(weight / scale)
    int4                a scale for each 32 weights        see groups/

Not a call of a decode step: it happens once per weight, when a model is loaded, on threads of its own. Reads
the weights where they lie, transposed ones too.

    reference.py   the definition
    groups/        int4
    check.py       what is refused
    cpu.cpp        blocks of 32 rows shared among the threads, each first made float32
"""

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.kernels import native
from winnow.kernels.operands import DTYPE_CODES, int4
from winnow.kernels.pack.check import check_int4, check_room
from winnow.kernels.pack.groups import GROUP, from_int4, to_int4
from winnow.kernels.pack.reference import to_int8

__all__ = ["GROUP", "check_int4", "from_int4", "pack", "to_int4", "to_int8"]

_STORED_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ALONE = 1 << 16  # weights that one thread packs before another has started


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
    if native.module is None or isa == "torch":
        made = to_int8(weight) if held == torch.int8 else to_int4(weight) if held == int4 else (weight, None)
        values.copy_(made[0])
        if scales is not None and made[1] is not None:
            scales.copy_(made[1])
        return
    source = weight.detach() if weight.dtype in _STORED_CODES else weight.detach().float()
    row_stride = values.stride(0) * (2 if held == int4 else 1)
    held_scales = (0, 0) if scales is None else (scales.data_ptr(), scales.stride(0))
    into = native.module.Matrix(values.data_ptr(), *weight.shape, row_stride, DTYPE_CODES[held], *held_scales)
    threads = torch.get_num_threads() if weight.numel() > _ALONE else 1
    cpu = native.module.Cpu(threads, native.module.isa_levels()[-1] if isa == "best" else isa)
    cpu.pack(source.data_ptr(), _STORED_CODES[source.dtype], *source.stride(), into)
