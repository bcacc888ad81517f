"""Sampled: the privacy loss of one step on a random sample.   (floor 2 · linalg)

Every record enters a step with probability `rate`, on its own (Poisson sampling). With the record the step's
outcome follows P = (1 - rate) N(0, sigma^2) + rate N(1, sigma^2) along the record's gradient, without it
Q = N(0, sigma^2), and the loss is

    L(x) = ln (P / Q)(x) = ln(1 - rate + rate exp((2 x - 1) / (2 sigma^2)))

Shuffled batches of fixed size are not this, and their privacy is not the one computed here.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtr

from winnow.base.errors import UsageError
from winnow.linalg.privacy.gaussian import check

Grid = Float64[np.ndarray, " _"]


@final
@dataclass(frozen=True)
class Release:
    """`steps` noisy sums, each over a Poisson sample of the records at `rate`; `noise` is sigma / clip norm.

    Raises UsageError for a number outside its range.
    """

    noise: float | int
    rate: float | int
    steps: int

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        check("noise", self.noise, 0.0, math.inf)
        check("steps", self.steps, 0.0, math.inf)
        if not 0 < self.rate <= 1:
            raise UsageError(f"rate is {self.rate}; expected a share above 0 and at most 1.")

    @property
    def mu(self) -> float:
        """Signal to noise for one who sees every step and knows who was in it."""
        return math.sqrt(self.steps) / self.noise

    def loss(self, x: Grid) -> Grid:
        """Return L at `x`."""
        shift = (2 * x - 1) / (2 * self.noise**2)
        if self.rate == 1:
            return shift
        return np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + shift)

    def outcome(self, loss: Grid) -> Grid:
        """Return the x at which L is `loss`; minus infinity at and below the least loss, ln(1 - rate)."""
        if self.rate == 1:
            return self.noise**2 * loss + 0.5
        with np.errstate(divide="ignore"):
            # ln(e^loss - (1 - rate)), by what the two exponents differ
            odds = math.log1p(-self.rate) + np.log(np.expm1(np.maximum(loss - math.log1p(-self.rate), 0.0)))
        return self.noise**2 * (odds - math.log(self.rate)) + 0.5

    def masses(self, edges: Grid) -> tuple[Grid, Grid]:
        """Return the masses of P and of Q between neighbouring `edges` of x, which ascend."""
        q = _between(edges / self.noise)
        return (1 - self.rate) * q + self.rate * _between((edges - 1) / self.noise), q


def _between(z: Grid) -> Grid:
    """Return the normal mass between neighbours, by the tail in which it is exact."""
    return np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
