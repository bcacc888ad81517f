"""Sign set, by its definition.   (floor 1 · kernels)"""

import numpy as np
from jaxtyping import Float32, Int32, UInt64

from winnow.kernels.bit_products.reference import bit_distances_reference, pack_signs_reference


def sign_set_reference(
    projected: Float32[np.ndarray, " n_signs"],
    signs: UInt64[np.ndarray, "F words"],
    cosines: Float32[np.ndarray, " _"],
    sizes: Float32[np.ndarray, " F"],
    bias: Float32[np.ndarray, " F"],
) -> Int32[np.ndarray, " A"]:
    """Return, ascending, the neurons whose score is above 0.

    The score is ``sizes * |p| * cosines[d] + bias`` in float32, |p| the root mean square of `projected` and d
    the signs, positive or not, that differ. A score that is not a number counts as above 0, so that a broken
    input stays visible.
    """
    length = np.sqrt(np.square(projected, dtype=np.float64).mean()).astype(np.float32)
    own = np.broadcast_to(pack_signs_reference(projected[None] > 0), signs.shape)
    differing = bit_distances_reference(own, signs)
    scores = sizes * length * cosines[differing] + bias
    return np.flatnonzero(~(scores <= 0)).astype(np.int32)
