"""Pack, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import BFloat16, Float, Float32, Int8, UInt8
from torch import Tensor

GROUP = 32  # weights of int4 that share a scale
_LARGEST_INT8 = 127
_SMALLEST_INT4, _LARGEST_INT4 = -8, 7


def to_int8(weight: Float[Tensor, "N D"]) -> tuple[Int8[Tensor, "N D"], Float32[Tensor, " N"]]:
    """Return the nearest int8 of each row and the rows' scales, not finite where the row is not."""
    scales = weight.abs().amax(-1).float() / _LARGEST_INT8
    steps = weight.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return steps.round_().to(torch.int8), scales


def to_int4(weight: Float[Tensor, "N D"]) -> tuple[UInt8[Tensor, "N D_half"], BFloat16[Tensor, "N D_groups"]]:
    """Return the halves of bytes and the scales of each group, whose largest magnitude becomes -8 of them."""
    grouped = weight.float().unflatten(-1, (-1, GROUP))  # N, groups, 32
    peaks = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scales = (peaks / _SMALLEST_INT4).bfloat16()
    steps = (grouped / torch.where(scales == 0, 1.0, scales.float())).round_()
    steps = steps.clamp_(_SMALLEST_INT4, _LARGEST_INT4).sub_(_SMALLEST_INT4).to(torch.uint8)
    low, high = steps.split(GROUP // 2, -1)
    return (low | high << 4).flatten(1), scales.squeeze(-1)


def from_int4(
    groups: UInt8[Tensor, "N D_half"], scales: BFloat16[Tensor, "N D_groups"]
) -> Float32[Tensor, "N D"]:
    """Return the weights that groups and scales stand for."""
    halves = groups.unflatten(-1, (-1, GROUP // 2))
    steps = torch.cat([halves & 15, halves >> 4], -1).float() + _SMALLEST_INT4
    return (steps * scales.float()[..., None]).flatten(1)
