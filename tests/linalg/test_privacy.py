"""Privacy accounting: against published values, against integrals, and against runs."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from winnow.base.errors import ResourceError, UsageError
from winnow.base.rng import keyed
from winnow.linalg.privacy import (
    Release,
    account,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise,
    pld_epsilon,
    rdp_epsilon,
    recovery_bound,
    sgd_bound,
)
from winnow.linalg.privacy.rdp import divergence

# rate, noise, steps, delta; epsilon by moments at 150 orders, and by loss distributions: three
# implementations agree
KNOWN = [
    (0.01, 1.0, 1000, 1e-5, 2.1014, 1.8282),
    (0.01, 0.6, 1000, 1e-5, 8.6659, 7.4336),
    (0.004, 1.1, 15000, 1e-5, 2.5029, 2.2955),
    (0.02, 2.0, 5000, 1e-6, 3.8726, 3.6092),
    (0.05, 1.0, 500, 1e-5, 8.2967, 7.5237),
]
SINGLE = [
    (0.1, 91.82),
    (0.2, 33.10),
    (0.3, 19.13),
    (0.5, 10.00),
    (0.7, 6.65),
    (1, 4.38),
    (2, 1.99),
    (4, 0.93),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "by_moments", "by_losses"), KNOWN)
def test_epsilons_are_the_known_ones(rate, noise, steps, delta, by_moments, by_losses):
    release = Release(noise, rate, steps)
    assert rdp_epsilon(release, delta) == pytest.approx(by_moments, abs=1e-3)
    found = pld_epsilon(release, delta)
    assert found == pytest.approx(by_losses, abs=1e-3)
    assert found > by_losses - 1e-4  # a bound from above


@pytest.mark.parametrize(("noise", "epsilon"), SINGLE)
def test_one_release_has_its_exact_epsilon(noise, epsilon):
    assert gaussian_epsilon(1 / noise, 1e-5) == pytest.approx(epsilon, abs=6e-3)


@pytest.mark.parametrize("mu", [0.03, 0.7, 3.1])
@pytest.mark.parametrize("epsilon", [0.0, 0.4, 2.5])
def test_delta_is_the_mass_that_epsilon_does_not_cover(mu, epsilon):
    def excess(x: float) -> float:
        return max(0.0, norm.pdf(x - mu) - math.exp(epsilon) * norm.pdf(x))

    crossing = epsilon / mu + mu / 2
    expected, _ = quad(excess, crossing, crossing + 20, epsabs=1e-14)
    assert gaussian_delta(mu, epsilon) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_server_and_final_model_are_two_epsilons():
    found = account(Release(noise=1.0, rate=0.05, steps=500), 1e-5)
    assert found.final_model == pytest.approx(7.52, abs=5e-3)
    assert found.server == pytest.approx(344, abs=0.5)
    assert found.final_model < found.final_model_rdp < found.server
    assert found.recovery(1 / 50257) > 0.999


@pytest.mark.parametrize(("rate", "noise", "epsilon"), [(0.3, 0.8, 0.5), (0.01, 2.0, 0.02), (0.9, 1.5, 0.3)])
def test_one_sampled_step_loses_what_its_integrals_say(rate, noise, epsilon):
    def density(x: float) -> tuple[float, float]:
        absent = norm.pdf(x, scale=noise)
        return (1 - rate) * absent + rate * norm.pdf(x, 1, noise), absent

    def excess(x: float, is_removed: bool) -> float:
        p, q = density(x) if is_removed else density(x)[::-1]
        return max(0.0, p - math.exp(epsilon) * q)

    deltas = [quad(excess, -12, 14, args=(way,), limit=400, points=[-1, 0, 1])[0] for way in (True, False)]
    assert pld_epsilon(Release(noise, rate, 1), max(deltas)) == pytest.approx(epsilon, abs=2e-4)


@pytest.mark.parametrize("order", [2, 5, 31])
def test_moments_of_whole_orders_have_their_closed_form(order):
    rate, noise = 0.07, 0.9
    k = np.arange(order + 1)
    terms = [math.log(math.comb(order, i)) for i in k] + k * math.log(rate) + (order - k) * math.log1p(-rate)
    expected = logsumexp(terms + (k * k - k) / (2 * noise**2)) / (order - 1)
    assert divergence(Release(noise, rate, 1), order) == pytest.approx(expected, rel=1e-12)


def test_without_sampling_every_accountant_bounds_the_exact_one():
    release = Release(noise=3.0, rate=1.0, steps=7)
    exact = gaussian_epsilon(release.mu, 1e-6)
    assert pld_epsilon(release, 1e-6) == exact
    assert exact < rdp_epsilon(release, 1e-6) < exact * 1.2
    assert pld_epsilon(Release(3.0, 1 - 1e-9, 7), 1e-6) == pytest.approx(exact, abs=1e-3)


def test_noise_for_an_epsilon_gives_that_epsilon_and_the_textbooks_gives_more():
    for epsilon, textbook in ((1, 0.75), (5, 4.54), (10, 10.39), (20, 25.4)):
        noise = gaussian_noise(epsilon, 1e-5)
        assert gaussian_epsilon(1 / noise, 1e-5) == pytest.approx(epsilon, rel=1e-8)
        classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
        assert gaussian_epsilon(1 / classical, 1e-5) == pytest.approx(textbook, rel=5e-3)
    assert gaussian_noise(2.0, 1e-5, releases=9) == pytest.approx(3 * gaussian_noise(2.0, 1e-5))


def test_no_test_of_one_release_beats_the_recovery_bound():
    rng, prior, mu, n = keyed(4, 0), 0.1, 1.3, 400_000
    secret = rng.random(n) < prior
    seen = rng.standard_normal(n) + mu * secret
    # The attacker names as many as its prior allows: the likeliest. Its hits among the true ones are the
    # bound's.
    named = seen > norm.isf(prior)
    assert named[secret].mean() == pytest.approx(recovery_bound(mu, prior), abs=5e-3)
    assert recovery_bound(1e-9, prior) == pytest.approx(prior)


@pytest.mark.parametrize("noise", [0.0001, 0.1, 1.0])
def test_noisy_descent_stays_below_its_bound(noise):
    width, steps, start, lipschitz = 10, 400, 2.0, 1.0
    release = Release(noise, 1.0, steps)
    gap = 0.5 * width * start**2
    bound = sgd_bound(gap, lipschitz, 1.0, 1, release, width, clip=1.0)
    variance = 1.0 + width * noise**2
    rate = math.sqrt(2 * gap / (lipschitz * variance * steps))
    rng, x, least = keyed(9, 1), np.full(width, start), math.inf
    for _ in range(steps):
        least = min(least, float(x @ x))
        x -= rate * (x + rng.standard_normal(width) * (width**-0.5 + noise))
    assert 0 < least < bound


def test_more_noise_or_fewer_steps_is_more_private():
    def epsilon(noise: float, steps: int) -> float:
        return pld_epsilon(Release(noise, 0.02, steps), 1e-5)

    assert epsilon(2.0, 100) < epsilon(1.0, 100) < epsilon(1.0, 300)
    assert pld_epsilon(Release(50.0, 0.001, 3), 0.2) == 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Release(0.0, 0.1, 5), "noise is 0.0"),
        (lambda: Release(float("nan"), 0.1, 5), "noise is nan"),
        (lambda: Release(1.0, 1.5, 5), "rate is 1.5"),
        (lambda: Release(1.0, 0.0, 5), "rate is 0.0"),
        (lambda: Release(1.0, 0.1, 0), "steps is 0"),
        (lambda: gaussian_epsilon(-1.0, 1e-5), "mu is -1.0"),
        (lambda: gaussian_epsilon(1.0, 1.0), "delta is 1.0"),
        (lambda: gaussian_epsilon(1e4, 1e-5), "that is no privacy"),
        (lambda: pld_epsilon(Release(1.0, 0.1, 5), 0.0), "delta is 0.0"),
        (lambda: gaussian_noise(0.0, 1e-5), "epsilon is 0.0"),
        (lambda: recovery_bound(1.0, 1.0), "prior is 1.0"),
        (lambda: sgd_bound(1.0, -1.0, 1.0, 1, Release(1.0, 1.0, 1), 1, 1.0), "smoothness is -1.0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_losses_beyond_the_grid_are_refused_by_name():
    with pytest.raises(ResourceError, match="that much loss is no privacy"):
        pld_epsilon(Release(0.01, 0.5, 10), 1e-5)
