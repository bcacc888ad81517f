"""PLD: composition by the distribution of the privacy loss.   (floor 2 · linalg)

The loss of many steps is the sum of theirs, so its distribution is a convolution, done by one FFT on a grid
of losses. A step's mass between two grid points is given to both so that neither its probability under P nor
that under Q changes: the divergence is then exact at the grid points and, being convex in e^epsilon, nowhere
too small. Mass beyond the grid is counted as infinite loss, or moved up to its beginning.

Both directions are computed, the record added and the record removed; the larger epsilon counts.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64
from scipy.optimize import root_scalar
from scipy.special import logsumexp

from winnow.base.errors import ResourceError
from winnow.linalg.privacy.gaussian import check, gaussian_epsilon
from winnow.linalg.privacy.sampled import Release

STEP = 1e-4  # of the grid, in nats
MOST_POINTS = 2**24
_TAIL = 1e-4  # of delta: what may lie beyond the grid
_SIGMAS = 39.0  # beyond which a normal mass is below the smallest float

Masses = Float64[np.ndarray, " _"]


def pld_epsilon(release: Release, delta: float) -> float:
    """Return an epsilon with which the whole of `release` is (epsilon, delta)-private.

    An upper bound, within some 1e-4 of the least. Costs up to seconds and 400 MB. Raises UsageError for a
    delta outside 0..1, ResourceError where the losses spread over more than 2^24 grid points: that is an
    epsilon in the thousands.
    """
    check("delta", delta, 0.0, 1.0)
    if release.rate == 1:
        return gaussian_epsilon(release.mu, delta)
    return max(
        _epsilon(_one_step(release, is_removed, delta), release.steps, delta) for is_removed in (True, False)
    )


@final
@dataclass(frozen=True)
class Losses:
    """A distribution of losses: `masses` at ``(first + i) * STEP``, and `infinite` beyond all."""

    first: int
    masses: Masses
    infinite: float

    @property
    def values(self) -> Masses:
        """The losses that the masses belong to."""
        return (self.first + np.arange(len(self.masses))) * STEP

    def delta(self, epsilon: float) -> float:
        """Return the divergence: the mass above epsilon, less e^epsilon times what Q gives it."""
        above = self.values - epsilon
        return self.infinite - float(np.sum(self.masses[above > 0] * np.expm1(-above[above > 0])))


def _one_step(release: Release, is_removed: bool, delta: float) -> Losses:
    """Return the loss of one step on the grid, of P from Q or of Q from P."""
    tail = _TAIL * delta / release.steps
    reach = 1 + min(_SIGMAS, math.sqrt(-2 * math.log(tail))) * release.noise
    least = math.log1p(-release.rate)  # of L, which no outcome goes below
    first, last = math.floor(least / STEP), math.ceil(float(release.loss(np.array([reach]))[0]) / STEP)
    _check_points(last - first)
    edges = np.arange(first, last + 1) * STEP
    x = release.outcome(edges)
    x[-1] = np.inf
    p, q = release.masses(x)
    if is_removed:  # the last cell has no end
        return Losses(first, _shared(edges[:-1], p[:-1], q[:-1]), float(p[-1]))
    # Q from P: the loss is -L, and the cell without an end the lowest.
    return Losses(-last, _shared(-edges[::-1], q[::-1], p[::-1]), 0.0)


def _shared(edges: Masses, p: Masses, q: Masses) -> Masses:
    """Return masses at the edges, whose sums of p and of q in every cell stay what they are.

    In a cell from a to b: e^a q_a + e^b q_b = p and q_a + q_b = q. The lowest cell may be open below: all of
    it goes to its upper edge.
    """
    width = -math.expm1(-STEP)  # 1 - e^(a - b)
    at_upper = (p - np.exp(edges[:-1]) * q) / width
    at_upper = np.clip(at_upper, 0.0, p)  # against rounding
    at_upper[0] = p[0]
    masses = np.zeros(len(edges))
    masses[1:] += at_upper
    masses[:-1] += p - at_upper
    return masses


def _epsilon(one: Losses, steps: int, delta: float) -> float:
    whole = _composed(one, steps, _TAIL * delta)
    if whole.delta(0.0) <= delta:
        return 0.0
    most = float(whole.values[-1])
    if whole.delta(most) > delta:
        raise ResourceError(f"epsilon exceeds {most:.0f} at delta {delta:g}: that is no privacy; add noise.")
    return root_scalar(lambda epsilon: whole.delta(epsilon) - delta, bracket=(0.0, most)).root


def _composed(one: Losses, steps: int, tail: float) -> Losses:
    """Return the loss of `steps` independent steps, up to a mass of `tail` counted as infinite."""
    low, high = _reach(one, steps, tail / 2)
    first, last = math.floor(low / STEP), math.ceil(high / STEP)
    n = 2 ** math.ceil(math.log2(max(last - first + 1, len(one.masses) + 1)))
    _check_points(n)
    # Losses modulo n grid points: position (steps * one.first + i) mod n.
    spectrum = np.fft.rfft(one.masses, n) ** steps
    masses = np.maximum(np.fft.irfft(spectrum, n), 0.0)
    masses = np.roll(masses, (steps * one.first - first) % n)
    infinite = -math.expm1(steps * math.log1p(-one.infinite)) + tail
    return Losses(first, masses, infinite)


def _reach(one: Losses, steps: int, tail: float) -> tuple[float, float]:
    """Return what the sum of `steps` stays between but for a mass of `tail` at either side (Chernoff)."""
    values, log_masses = one.values, np.log(np.maximum(one.masses, 1e-300))
    found = []
    for sign in (-1.0, 1.0):
        rates = np.geomspace(1e-3, 1e4, 141)
        moments = np.array([logsumexp(log_masses + sign * rate * values) for rate in rates])
        found.append(sign * float(np.min((steps * moments - math.log(tail)) / rates)))
    return found[0], found[1]


def _check_points(n: int) -> None:
    if n > MOST_POINTS:
        raise ResourceError(
            f"the privacy loss spreads over {n * STEP:.0f} nats, more than {MOST_POINTS * STEP:.0f}: "
            "that much loss is no privacy: add noise or take fewer steps."
        )
