"""Sign set: which neurons will fire, by the signs that their projections share.   (floor 1 · kernels)

    { f : sizes_f * |p| * cosines[differing signs of p and neuron f] + bias_f > 0 }

p holds projections of an input, |p| their root mean square. Vectors at an angle a differ in a share a / pi
of the signs of random projections: with cosines[d] = cos(pi d / n), n signs in all, the score estimates a
pre-activation. Reads n / 8 + 8 bytes per neuron, the signs in whole words of 64.

    reference.py   the definition
    cpu.cpp        exclusive ors and counts, then the list
"""

import numpy as np
import torch
from jaxtyping import Float32, Int32, UInt64
from torch import Tensor

from winnow.base.errors import UsageError
from winnow.kernels.active_set.sign_set.reference import sign_set_reference
from winnow.kernels.checks import float32_array
from winnow.kernels.cpu import Cpu

__all__ = ["sign_set", "sign_set_reference"]


def sign_set(
    projected: Float32[Tensor, " n_signs"],
    signs: UInt64[np.ndarray, "F words"],
    cosines: Float32[Tensor, " _"],
    sizes: Float32[Tensor, " _"],
    bias: Float32[Tensor, " _"],
    *,
    cpu: Cpu,
) -> Int32[Tensor, " A"]:
    """Return, ascending, the neurons whose score by shared signs is above 0; the bits of the definition.

    A score that is not a number selects its neuron. Raises UsageError for shapes that do not chain, and for
    signs that do not fill whole words.
    """
    n_neurons, n_signs = len(signs), 64 * signs.shape[1]
    if n_signs == 0 or len(projected) != n_signs:
        raise UsageError(
            f"projected has length {len(projected)} and signs {signs.shape[1]} words, expected 64 per word."
        )
    arrays = (
        float32_array("projected", projected, n_signs)[None],
        np.ascontiguousarray(signs),
        float32_array("cosines", cosines, n_signs + 1),
        float32_array("sizes", sizes, n_neurons),
        float32_array("bias", bias, n_neurons),
    )
    indices, count = torch.empty(n_neurons, dtype=torch.int32), np.zeros(1, np.int64)
    cpu.sign_set(*arrays, indices[None].numpy(), count)
    return indices[: count[0]]
