"""Groups of int4, by their definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import BFloat16, Float, Float32, UInt8
from torch import Tensor

GROUP = 32  # weights that share a scale
_LEAST, _MOST = -8, 7
_PEAKS = (-8.0, -7.5, -7.75, -8.25, -8.5, -8.75, -9.0)  # steps at which the largest magnitude may come to lie


def to_int4(weight: Float[Tensor, "N D"]) -> tuple[UInt8[Tensor, "N D_half"], BFloat16[Tensor, "N D_groups"]]:
    """Return the halves of bytes and the scales of each group, the first that loses least."""
    grouped = weight.float().unflatten(-1, (-1, GROUP))  # N, groups, 32
    peaks = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scales = first = (peaks / _PEAKS[0]).bfloat16().float()
    least = torch.where(first.abs() < torch.finfo(torch.float32).tiny, 0.0, _lost(grouped, first))
    for peak in _PEAKS[1:]:
        other = (peaks / peak).bfloat16().float()
        lost = _lost(grouped, other) * (other / first).square()
        scales, least = torch.where(lost < least, other, scales), torch.where(lost < least, lost, least)
    steps = (grouped / torch.where(scales == 0, 1.0, scales)).round().clamp(_LEAST, _MOST)
    low, high = (steps - _LEAST).to(torch.uint8).split(GROUP // 2, -1)
    return (low | high << 4).flatten(1), scales.bfloat16().squeeze(-1)


def _lost(grouped: Tensor, scales: Tensor) -> Tensor:
    exact = grouped * scales.reciprocal()
    lost = ((exact - exact.round().clamp(_LEAST, _MOST)) * 1024).round().nan_to_num(0, 0, 0).long()
    return lost.square().sum(-1, keepdim=True).float()  # whole numbers: exact in any order


def from_int4(groups: UInt8[Tensor, "N D_half"], scales: BFloat16[Tensor, "N _"]) -> Float32[Tensor, "N D"]:
    """Return the weights that groups and scales stand for."""
    halves = groups.unflatten(-1, (-1, GROUP // 2))
    steps = torch.cat([halves & 15, halves >> 4], -1).float() + _LEAST
    return (steps * scales.float()[..., None]).flatten(1)
