"""Kinks: where an output of the ReLU switches, the loss has a corner.   (floor 2 · linalg)

At ``h_i = 0`` the slope along h_i jumps from 0 to ``-b_i``. With ``b_i >= 0`` every descent passes through;
with ``b_i < 0`` the corner can be a minimum, and no gradient vanishes there. What vanishes is the smallest
element of Clarke's generalised gradient: the gradient with a slope between 0 and ``-b_i`` for every such
output.
"""

import numpy as np
from jaxtyping import Float, Int64
from scipy.optimize import lsq_linear

from winnow.linalg.two_layer.problem import Point

NEAR = 1e-6  # of the largest output: closer to 0 counts as on the kink


def nearest_kinks(point: Point) -> Int64[np.ndarray, " kinks"]:
    """Return the outputs with a negative target that sit at their kink."""
    near = np.abs(point.h) <= NEAR * max(np.abs(point.h).max(), np.finfo(np.float64).tiny)
    return np.flatnonzero(near & (point.problem.b < 0.0))


def generalised(
    point: Point, kinks: Int64[np.ndarray, " kinks"]
) -> tuple[float, Float[np.ndarray, " kinks"]]:
    """Return the norm of the smallest generalised gradient, and where each slope lies between its sides."""
    if not len(kinks):
        return point.gradient_norm, np.zeros(0)
    slopes = point.output_slopes(kinks)
    below = point.gradient - slopes.T @ np.where(point.is_on[kinks], point.c[kinks], 0.0)
    found = lsq_linear(slopes.T * -point.problem.b[kinks], -below, bounds=(0.0, 1.0), method="bvls")
    return float(np.linalg.norm(found.fun)), found.x


def pattern_radius(point: Point, norm_A1: float) -> float:
    """Return a radius around x in which no output can switch: ``min |h_i| / (|a2_i| |A1| / 2)``.

    The softmax is 1/2-Lipschitz in the 2-norm, so an output moves by at most half the norm of its row of A2
    times `norm_A1`, the 2-norm of A1, times the distance. Infinite where no output can move at all.
    """
    reach = 0.5 * np.linalg.norm(point.problem.A2, axis=1) * norm_A1
    moving = reach > 0.0
    return float(np.min(np.abs(point.h[moving]) / reach[moving], initial=np.inf))
