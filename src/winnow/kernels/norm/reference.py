"""Norms, by their definitions.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float
from torch import Tensor


def layer_norm_reference(
    x: Float[Tensor, "N D"], weight: Float[Tensor, " D"], bias: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "N D"]:
    """Return rows shifted to mean 0 and scaled to variance 1, times `weight` plus `bias`."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weight.to(x.dtype) + bias.to(x.dtype)


def rms_norm_reference(
    x: Float[Tensor, "N D"], weight: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "N D"]:
    """Return rows scaled to mean square 1, times `weight`."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)
