"""Norms: rows brought to one scale.   (floor 1 · kernels)

    layer norm   (x - mean) / sqrt(variance + eps) * weight + bias
    RMS norm     x / sqrt(mean square + eps) * weight

A row is read twice from the first-level cache; one thread does it, a fork would cost more than the row.

    reference.py   the definitions
    cpu.cpp        one vector register at a time, sums in a fixed order
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.norm.reference import layer_norm_reference, rms_norm_reference

__all__ = ["layer_norm", "layer_norm_reference", "rms_norm", "rms_norm_reference"]


def layer_norm(
    x: Float32[Tensor, "N D"],
    weight: Float32[Tensor, " D"],
    bias: Float32[Tensor, " D"],
    eps: float,
    *,
    cpu: Cpu,
) -> Float32[Tensor, "N D"]:
    """Return each row shifted to mean 0, scaled to variance 1, times `weight` plus `bias`."""
    width = x.shape[-1]
    out = torch.empty(x.shape)
    arrays = (float32_array("weight", weight, width), float32_array("bias", bias, width))
    cpu.layer_norm(float32_array("x", x, *x.shape), *arrays, eps, out.numpy())
    return out


def rms_norm(
    x: Float32[Tensor, "N D"], weight: Float32[Tensor, " D"], eps: float, *, cpu: Cpu
) -> Float32[Tensor, "N D"]:
    """Return each row scaled to mean square 1, times `weight`."""
    out = torch.empty(x.shape)
    cpu.rms_norm(
        float32_array("x", x, *x.shape), float32_array("weight", weight, x.shape[-1]), eps, out.numpy()
    )
    return out
