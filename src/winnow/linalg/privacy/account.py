"""Account: the two adversaries side by side, and the price of the noise.   (floor 2 · linalg)"""

import math
from dataclasses import dataclass
from typing import final

from winnow.linalg.privacy.gaussian import check, gaussian_epsilon, recovery_bound
from winnow.linalg.privacy.pld import pld_epsilon
from winnow.linalg.privacy.rdp import rdp_epsilon
from winnow.linalg.privacy.sampled import Release


@final
@dataclass(frozen=True)
class Account:
    """What a run gives away at one delta, by who looks.

    `server` sees every noisy update and knows whose it is: nothing is hidden by sampling. `final_model` sees
    the last weights alone: `final_model` is tight, `final_model_rdp` what moments give.
    """

    release: Release
    delta: float
    server: float
    final_model: float
    final_model_rdp: float

    def recovery(self, prior: float) -> float:
        """Return the most that the server can raise a right guess of probability `prior` to."""
        return recovery_bound(self.release.mu, prior)


def account(release: Release, delta: float) -> Account:
    """Return both epsilons of `release` at `delta`. Raises UsageError for a delta outside 0..1."""
    server = gaussian_epsilon(release.mu, delta)
    return Account(release, delta, server, pld_epsilon(release, delta), rdp_epsilon(release, delta))


def sgd_bound(
    gap: float,
    smoothness: float,
    variance: float,
    batch: int,
    release: Release,
    n_parameters: int,
    clip: float,
) -> float:
    """Return a bound on the least mean squared gradient norm among the steps of noisy gradient descent.

        2 sqrt(2 gap smoothness (variance / batch + n_parameters (noise clip / batch)^2) / steps)

    `gap` is the first loss less the least there is, `variance` that of one record's gradient. Holds for
    smooth losses, convex or not, with the best constant step size, as long as no gradient is clipped:
    clipping adds a bias that this leaves out. Raises UsageError for numbers that are not above 0.
    """
    named = {"gap": gap, "smoothness": smoothness, "batch": batch, "n_parameters": n_parameters, "clip": clip}
    for name, value in named.items():
        check(name, value, 0.0, math.inf)
    check("variance", variance, 0.0, math.inf, may_be_least=True)
    noise = variance / batch + n_parameters * (release.noise * clip / batch) ** 2
    return 2 * math.sqrt(2 * gap * smoothness * noise / release.steps)
