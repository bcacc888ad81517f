"""Active set: which neurons will fire, by a low-rank guess.   (floor 1 · kernels)

    { f : (P2 @ (P1 @ x) + bias)_f > 0 }

Reads R * (D + F) * itemsize bytes, where the exact answer would read F * D * itemsize. What it loses is the
predictor's to say; the threshold is part of `bias`.

    reference.py            the definition
    select.hpp select.cpp   the cap
    listing.hpp             each block of neurons keeps a list, joined in order
    cpu.cpp                 two products, then the list
    sign_set/               the guess by signs of projections in its place
"""

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.active_set.reference import active_set_reference
from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu
from winnow.kernels.matrices import AnyMatrix

__all__ = ["active_set", "active_set_reference"]


def active_set(
    x: Float32[Tensor, " D"],
    p1: AnyMatrix,
    p2: AnyMatrix,
    bias: Float32[Tensor, " F"],
    *,
    cap: int = 0,
    cpu: Cpu,
) -> Int32[Tensor, " A"]:
    """Return the neurons whose predicted pre-activation is above 0, ascending.

    ``cap > 0`` keeps at most `cap` of them: the highest scores, of equal scores the lower index. A score that
    is not a number counts as +infinity. Raises UsageError when the shapes do not chain.
    """
    (rank, width), (n_neurons, inner) = p1.weight.shape, p2.weight.shape
    if rank != inner:
        raise UsageError(f"p1 has {rank} rows and p2 {inner} columns, expected the same rank.")
    if cap < 0:
        raise UsageError(f"cap is {cap}, expected 0 for no cap or more.")
    indices = torch.empty(n_neurons, dtype=torch.int32)
    arrays = float32_array("x", x, width), float32_array("bias", bias, n_neurons)
    count = np.zeros(1, np.int64)
    cpu.active_set(arrays[0][None], p1, p2, arrays[1], cap, indices[None].numpy(), count)
    return indices[: count[0]]
