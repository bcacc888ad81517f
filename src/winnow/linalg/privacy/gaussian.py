"""Gaussian: the exact privacy of noise that is normal.   (floor 2 · linalg)

Telling a record's presence from releases with noise multipliers sigma_1, sigma_2, ... is telling N(0, 1) from
N(mu, 1) with mu^2 = sum 1 / sigma_i^2. All else follows:

    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

The textbook sigma = sqrt(2 ln(1.25 / delta)) / epsilon is proven for epsilon below 1 only, and from about 8
on gives less privacy than it says.
"""

import math

from scipy.optimize import root_scalar
from scipy.special import log_ndtr, ndtr, ndtri

from winnow.base.errors import UsageError

MOST_EPSILON = 1e6


def gaussian_delta(mu: float | int, epsilon: float | int) -> float:
    """Return the least delta at which releases of total signal to noise `mu` are (epsilon, delta)-private."""
    check("mu", mu, 0.0, math.inf)
    check("epsilon", epsilon, 0.0, math.inf, may_be_least=True)
    above = log_ndtr(mu / 2 - epsilon / mu)
    below = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    # e^above - e^below, whose difference may be far smaller than either
    return float(-math.exp(above) * math.expm1(min(below - above, 0.0)))


def gaussian_epsilon(mu: float | int, delta: float) -> float:
    """Return the least epsilon at which releases of total signal to noise `mu` are (epsilon, delta)-private.

    For T releases with noise multiplier sigma, ``mu = sqrt(T) / sigma``. Exact to 1e-9 of itself; 0 where
    delta alone covers it. Raises UsageError for mu <= 0, for a delta outside 0..1 and for an epsilon above
    1e6.
    """
    check("mu", mu, 0.0, math.inf)
    check("delta", delta, 0.0, 1.0)
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    most = mu * mu / 2 + mu * 40.0  # 40 standard deviations of the loss above its mean
    if most > MOST_EPSILON:
        raise UsageError(f"mu is {mu:g}, for which epsilon exceeds {MOST_EPSILON:g}: that is no privacy.")
    return root_scalar(lambda epsilon: gaussian_delta(mu, epsilon) - delta, bracket=(0.0, most)).root


def gaussian_noise(epsilon: float | int, delta: float, releases: int = 1) -> float:
    """Return the least noise multiplier with which `releases` are (epsilon, delta)-private together.

    Raises UsageError for an epsilon that is not above 0, a delta outside 0..1 and less than one release.
    """
    check("epsilon", epsilon, 0.0, MOST_EPSILON)
    check("delta", delta, 0.0, 1.0)
    check("releases", releases, 0.0, math.inf)
    bracket = 1e-9, 2 * math.sqrt(epsilon) + epsilon + 40.0
    mu = root_scalar(lambda mu: gaussian_delta(mu, epsilon) - delta, bracket=bracket).root
    return math.sqrt(releases) / mu


def recovery_bound(mu: float | int, prior: float) -> float:
    """Return the most that an attacker whose guess is right with probability `prior` can raise it to.

    ``Phi(Phi^-1(prior) + mu)``: for any attack on the releases, whatever its arithmetic. Holds for the record
    as a whole. Raises UsageError for a prior outside 0..1.
    """
    check("mu", mu, 0.0, math.inf)
    check("prior", prior, 0.0, 1.0)
    return float(ndtr(ndtri(prior) + mu))


def check(name: str, value: float | int, least: float, most: float, may_be_least: bool = False) -> None:
    """Refuse a number that does not lie between `least` and `most`."""
    if (value > least or (may_be_least and value == least)) and value < most:
        return
    above = "at least" if may_be_least else "above"
    below = "" if math.isinf(most) else f" and below {most:g}"
    raise UsageError(f"{name} is {value}; expected a number {above} {least:g}{below}.")
