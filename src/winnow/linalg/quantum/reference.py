"""Definition of amplitude amplification: the whole state vector, gate by gate.   (floor 2 · linalg)"""

import numpy as np
from jaxtyping import Float


def amplified_reference(chances: Float[np.ndarray, " N"], iterations: int) -> Float[np.ndarray, "N 2"]:
    """Return the probability of each (row, flag) after `iterations` Grover iterations.

    U makes ``sum_i |i> (sqrt(1 - p_i) |0> + sqrt(p_i) |1>) / sqrt(N)``. One iteration turns the sign of
    flag 1, then reflects about U|0>. Memory 2 N numbers: for small N only.
    """
    start = np.sqrt(np.stack([1.0 - chances, chances], axis=1) / len(chances))
    state = start.copy()
    for _ in range(iterations):
        state[:, 1] *= -1.0
        state = 2.0 * np.vdot(start, state) * start - state
    return state**2
