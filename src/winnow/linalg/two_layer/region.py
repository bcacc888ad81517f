"""Region: the minimum of a quadratic within a radius.   (floor 2 · linalg)"""

import numpy as np

from winnow.linalg.two_layer.products import Vector

ROUNDS = 60


def best_within(values: Vector, slope: Vector, radius: float) -> tuple[Vector, float]:
    """Return the p that minimises ``slope . p + 1/2 sum values * p^2`` over ``|p| <= radius``; its damping.

    p is ``-slope / (values + damping)`` with the one damping, at least ``-min(values)`` and 0, that is
    complementary to the radius. Where the slope has no part along the lowest value (the hard case) that part
    of p is free and is taken up to the radius.
    """
    floor = max(0.0, -float(values[0]))
    tiny = np.finfo(np.float64).eps * max(float(np.abs(values).max()), float(np.linalg.norm(slope)) / radius)

    def at(damping: float) -> Vector:
        return -slope / np.maximum(values + damping, max(tiny, np.finfo(np.float64).tiny))

    p = at(floor)
    if np.linalg.norm(p) <= radius:
        if floor == 0.0:
            return p, 0.0
        p[0] += np.copysign(np.sqrt(max(radius**2 - float(p @ p), 0.0)), p[0])
        return p, floor
    low, high = floor, floor + float(np.linalg.norm(slope)) / radius
    for _ in range(ROUNDS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.linalg.norm(at(middle)) > radius else (low, middle)
    return at(high), high
