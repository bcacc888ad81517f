"""Rotary positions, by their definition.   (floor 1 · kernels)"""

import torch
from jaxtyping import Float
from torch import Tensor


def rotate_reference(
    x: Float[Tensor, "H E"], cos: Float[Tensor, " half"], sin: Float[Tensor, " half"]
) -> Float[Tensor, "H E"]:
    """Return each head with the pairs (j, j + E/2) turned by the angle whose cosine and sine are given."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
