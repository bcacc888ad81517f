"""Certificates: they cover, they are not absurdly wide, and they know an adversary."""

import pytest
import torch

from tests.attention.streaming.cases import KINDS, case, drawn, exact
from winnow.attention.streaming import streaming
from winnow.base.errors import UsageError

KIND = streaming(128, heavy=32, clusters=32)  # the default's reservoir: a third of it is too wide at 5000


@pytest.mark.parametrize(("n", "n_draws"), [(1500, 2), (5000, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_statistical_bound_covers_and_is_near(kind, n, n_draws, rng):
    ratios, off = [], 0
    for _ in range(n_draws):
        q, k, v = case(kind, rng, n, 128)
        out, certificate = KIND.certified(q, k, v, causal=False)
        error = (out - exact(q, k, v, causal=False)).norm(dim=-1)
        ratios.append((certificate.statistical.error / error).flatten())
        off += int((certificate.deterministic.error < error).sum())
    ratio = torch.cat(ratios)
    assert float((ratio >= 1).double().mean()) >= 0.99
    assert float(ratio.median()) <= 10
    assert off == 0


def adversarial(rng):
    """One key among 1500 that hardly differs from the others, but for the one query that asks for it."""
    k, v = 1e-4 * drawn(rng, 1, 1, 1500, 32), 0.02 * drawn(rng, 1, 1, 1500, 32)
    aim = torch.nn.functional.normalize(drawn(rng, 32), dim=0)
    k[..., 700, :], v[..., 700, :] = 0.05 * aim, 5.0
    return (2000 * aim)[None, None, None], k, v


def test_an_adversary_beats_the_sample_but_not_the_balls(rng):
    q, k, v = adversarial(rng)
    state = streaming(64, heavy=0, clusters=1, reservoir=32, seed=1).start(1, 1, 32, 32)
    state.append(k, v)
    out, certificate = state.certified_read(q)
    error = float((out - exact(q, k, v, causal=False)).norm())
    assert error > 1
    assert float(certificate.statistical.error) < error <= float(certificate.deterministic.error)
    assert "not an adversary" in certificate.statistical.covers
    assert certificate.deterministic.covers == "every input"


def test_the_deterministic_bound_holds_causally_too(rng):
    q, k, v = drawn(rng, 1, 2, 400, 16), drawn(rng, 1, 1, 400, 16), drawn(rng, 1, 1, 400, 5)
    for remainder in ("on", "off", "zero"):
        kind = streaming(40, heavy=10, clusters=8, block=16, remainder=remainder)
        out, certificate = kind.certified(3 * q, k, v)
        error = (out - exact(3 * q, k, v)).norm(dim=-1)
        assert bool((error <= certificate.deterministic.error).all())
        assert float((error <= certificate.statistical.error).double().mean()) >= 0.99


def test_a_sample_of_everything_knows_the_error(rng):
    q, k, v = case("random", rng, 500, 64)
    out, certificate = streaming(64, heavy=8, clusters=8, reservoir=500).certified(q, k, v, causal=False)
    error = (out - exact(q, k, v, causal=False)).norm(dim=-1)
    assert float((certificate.statistical.error / error).median()) < 1.5
    truth = torch.einsum("bhte,bhse->bhts", q, k) / 32**0.5
    assert certificate.lse_gap.abs().max() < 0.5
    assert truth.isfinite().all()


def test_it_prints_both_bounds_and_how_loose_certainty_is(rng):
    q, k, v = case("random", rng, 900, 16)
    _, certificate = KIND.certified(q, k, v, causal=False)
    text = str(certificate)
    assert certificate.looseness > 1
    assert f"{certificate.looseness:.3g} times as loose" in text
    assert "the absorbed tokens carry most of the weight" in certificate.flags
    _, certificate = streaming(900).certified(q, k, v, causal=False)
    assert certificate.is_exact and str(certificate) == "exact: nothing was absorbed"
    assert certificate.flags == ()


def test_strict_is_exact_while_it_can_be_and_then_raises(rng):
    q, k, v = (drawn(rng, 1, 2, 300, 16) for _ in range(3))
    budget = {"heavy": 4, "clusters": 4, "block": 8, "tolerance": 1e-3}
    strict = streaming(32, strict=True, exact_tokens=300, **budget)
    torch.testing.assert_close(strict(q, k, v).double(), exact(q, k, v), atol=2e-3, rtol=0)
    with pytest.raises(UsageError, match="raise window, heavy or exact_tokens"):
        streaming(32, strict=True, exact_tokens=200, **budget)(q, k, v)
    lenient = streaming(32, strict=True, heavy=4, clusters=4, block=8, tolerance=1e3)
    assert torch.equal(lenient(q, k, v), streaming(32, heavy=4, clusters=4, block=8)(q, k, v))


def test_the_sample_is_uniform_and_the_seed_decides(rng):
    k = torch.arange(400.0)[None, None, :, None].expand(1, 40, -1, 4)

    def sampled(seed):
        state = streaming(16, sinks=0, heavy=0, block=16, clusters=1, reservoir=50, seed=seed).start(
            1, 40, 4, 4
        )
        state.append(k, k)
        return state.reservoir.key[..., 0]

    found = sampled(3)
    n_absorbed = 400 - 32
    assert torch.equal(found, sampled(3)) and not torch.equal(found, sampled(4))
    counts = torch.histc(found, 4, 0, n_absorbed)  # 2000 draws without replacement: sd below 19.4 a quarter
    assert float((counts - 500).abs().max()) < 4 * 19.4
