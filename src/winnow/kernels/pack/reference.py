"""Pack, by its definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

_LARGEST_INT8 = 127


def to_int8(weight: Float[Tensor, "N D"]) -> tuple[Int8[Tensor, "N D"], Float32[Tensor, " N"]]:
    """Return the nearest int8 of each row and the rows' scales, not finite where the row is not."""
    scales = weight.abs().amax(-1).float() / _LARGEST_INT8
    steps = weight.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return steps.round_().to(torch.int8), scales
